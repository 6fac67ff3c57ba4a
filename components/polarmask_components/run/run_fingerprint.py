"""Is there anything to do? A scheduled run stops if nothing changed since the last one finished.

Beside the champion registry there is one object for each set of parameters that matter, so that
schedules with different settings do not make each other look new:

    runs/SETTINGS.json      data and code of the last run that finished with these settings
"""

import hashlib
import json
from dataclasses import dataclass

from polarmask_components.errors import StorageError
from polarmask_components.storage.objects import Objects

FORMAT_VERSION = 1
_DIGITS = 16
_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What decides the outcome of a run.

    How many machines and processes train is no part of it: they make the same model.
    """

    data_hash: str
    """DVC's hash of the data."""
    code_version: str
    preset: str
    overrides: str
    """`section.field=value`, separated by spaces."""
    floor_ap: float
    model_name: str
    target: str
    """Where the model is served."""

    @property
    def name(self) -> str:
        """The object that remembers runs with these settings, whatever their data and code."""
        overrides = " ".join(self.overrides.split())
        settings = [self.preset, overrides, float(self.floor_ap), self.model_name, self.target]
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        return f"runs/{digest[:_DIGITS]}.json"


@dataclass(frozen=True)
class Decision:
    """Whether a run goes on."""

    goes_on: bool
    reason: str


def decide(objects: Objects, inputs: RunInputs, *, only_if_changed: bool) -> Decision:
    """Compare a run with the last one that finished with the same settings.

    Raises:
        StorageError: The place can't be read.
    """
    if not only_if_changed:
        return Decision(True, "the run goes on, changed or not: run_only_if_changed is false")
    found = objects.read(inputs.name)
    if found is None:
        return Decision(True, "the run goes on: none with these settings finished yet")
    try:
        last = json.loads(found[0])
        data_hash, code_version = last["data_hash"], last["code_version"]
        readable = last["format_version"] == FORMAT_VERSION
    except (ValueError, TypeError, KeyError):
        readable = False
    if not readable:
        return Decision(True, f"the run goes on: {inputs.name} of the last one can't be read")
    if data_hash != inputs.data_hash:
        return Decision(
            True, f"the run goes on: the data changed from {data_hash} to {inputs.data_hash}"
        )
    if code_version != inputs.code_version:
        return Decision(
            True, f"the run goes on: the code changed from {code_version} to {inputs.code_version}"
        )
    return Decision(
        False,
        f"nothing to do: data {data_hash}, code {code_version} and settings are those of the last "
        "run that finished; set run_only_if_changed to false to run all the same",
    )


def remember(objects: Objects, inputs: RunInputs) -> None:
    """Keep data and code of a run that finished; of runs that finish at once, the last counts.

    Raises:
        StorageError: The place can't be written.
    """
    record = {
        "format_version": FORMAT_VERSION,
        "data_hash": inputs.data_hash,
        "code_version": inputs.code_version,
    }
    data = (json.dumps(record, indent=1) + "\n").encode()
    for _ in range(_TRIES):
        found = objects.read(inputs.name)
        if found is not None and found[0] == data:
            return
        if objects.write(inputs.name, data, expected_tag=found[1] if found else None):
            return
    raise StorageError(f"{objects.where}: {inputs.name} changes all the time; run again")
