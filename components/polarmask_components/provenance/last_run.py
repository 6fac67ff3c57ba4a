"""Is there anything to do? A scheduled pipeline run stops if nothing changed since the last one.

Beside the model registry there is one object for each set of parameters that decide the result, so
that schedules with different settings do not affect each other:

    runs/SETTINGS.json      data and code of the last pipeline run that finished with these settings
"""

import hashlib
import json
from dataclasses import dataclass

from polarmask.system.formats import JsonFormat
from polarmask_components.errors import StorageError
from polarmask_components.storage.objects import Objects

_FORMAT = JsonFormat(1, StorageError, "delete it")
_DIGITS = 16
_TRIES = 5


@dataclass(frozen=True)
class RunInputs:
    """What decides the result of a pipeline run."""

    data_hash: str
    """DVC's hash of the data."""
    code_version: str
    settings_id: str
    """See `settings_id`."""

    @property
    def name(self) -> str:
        """The object that remembers runs with these settings, whatever their data and code."""
        return f"runs/{self.settings_id}.json"


@dataclass(frozen=True)
class Decision:
    """Whether a pipeline run continues."""

    continues: bool
    reason: str


def settings_id(
    *,
    preset: str,
    overrides: str,
    floor_ap: float,
    model_name: str,
    target: str,
    initial: str = "",
) -> str:
    """Return a hash of the parameters that decide the result.

    How many machines and processes train is no part of it: they make the same model.
    """
    overrides = " ".join(overrides.split())
    settings = [preset, overrides, float(floor_ap), model_name, target]
    settings += [initial] if initial else []
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:_DIGITS]


def decide(objects: Objects, inputs: RunInputs, *, only_if_changed: bool) -> Decision:
    """Compare a pipeline run with the last one that finished with the same settings.

    Raises:
        StorageError: The place can't be read.
    """
    if not only_if_changed:
        return Decision(True, "the run continues, changed or not: run_only_if_changed is false")
    found = objects.read(inputs.name)
    if found is None:
        return Decision(True, "the run continues: none with these settings finished yet")
    try:
        last = RunInputs(settings_id=inputs.settings_id, **_FORMAT.load(found[0], where=""))
    except (StorageError, TypeError):
        return Decision(True, f"the run continues: {inputs.name} of the last one can't be read")
    for what, before, now in (
        ("data", last.data_hash, inputs.data_hash),
        ("code", last.code_version, inputs.code_version),
    ):
        if before != now:
            return Decision(True, f"the run continues: the {what} changed from {before} to {now}")
    return Decision(
        False,
        f"nothing to do: data {last.data_hash}, code {last.code_version} and settings are those of "
        "the last run that finished; set run_only_if_changed to false to run all the same",
    )


def remember(objects: Objects, inputs: RunInputs) -> None:
    """Keep data and code of a run that finished; of runs that finish at once, the last counts.

    Raises:
        StorageError: The place can't be written.
    """
    facts = {"data_hash": inputs.data_hash, "code_version": inputs.code_version}
    data = _FORMAT.dump(facts).encode()
    for _ in range(_TRIES):
        found = objects.read(inputs.name)
        if found is not None and found[0] == data:
            return
        if objects.write(inputs.name, data, expected_tag=found[1] if found else None):
            return
    raise StorageError(f"{objects.where}: {inputs.name} keeps changing; run again")
