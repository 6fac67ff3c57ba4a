"""Recurring runs as they are wanted: applying twice is applying once.

Kubeflow can't change a recurring run, and lets several have one name. So ours carry a mark with a
hash of what was wanted: equal stays, different is made anew before the old one is deleted, and
recurring runs that others made are left alone.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polarmask_pipelines.cron import with_seconds
from polarmask_pipelines.kfp_client import Kubeflow, RecurringRun, Version

_MARK = "made by `polarmask_pipelines schedule apply`, state "
_MARKED = re.compile(re.escape(_MARK) + "([0-9a-f]{16})")

Action = Literal["create", "replace", "switch on", "switch off", "remove doubles of", "keep"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A recurring run that is wanted."""

    name: str
    cron: str
    """Five fields, in the time zone of the cluster."""
    parameters: dict[str, Any]
    """Of the pipeline, besides its defaults."""
    service_account: str = ""
    """That runs get; empty for Kubeflow's default."""
    enabled: bool = True

    def __post_init__(self) -> None:
        """Reject a schedule that Kubeflow would read otherwise."""
        with_seconds(self.cron)

    @property
    def state(self) -> str:
        """Hash of all that can't be changed later, the pipeline's version left out."""
        wanted = [with_seconds(self.cron), self.parameters, self.service_account]
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def description(self) -> str:
        """What people see in the UI, with the mark."""
        return f"PolarMask retraining, {self.cron}; {_MARK}{self.state}"


@dataclass(frozen=True)
class Plan:
    """What it takes until a schedule is as wanted."""

    action: Action
    schedule: Schedule
    kept: RecurringRun | None
    """The one that is as wanted, but for being switched on or off."""
    outdated: tuple[RecurringRun, ...]

    def carry_out(self, kubeflow: Kubeflow, *, experiment_id: str, version: Version) -> None:
        """Bring the server to what is wanted; when cut off, the next time mends the rest."""
        wanted = self.schedule
        if self.kept is None:
            # Before the old one goes: a failure between must not leave no schedule at all.
            kubeflow.create_recurring_run(
                wanted.name,
                description=wanted.description,
                cron=with_seconds(wanted.cron),
                enabled=wanted.enabled,
                experiment_id=experiment_id,
                version=version,
                parameters=wanted.parameters,
                service_account=wanted.service_account,
            )
        elif self.kept.enabled != wanted.enabled:
            kubeflow.switch_recurring_run(self.kept.id, enabled=wanted.enabled)
        for each in self.outdated:
            kubeflow.delete_recurring_run(each.id)


def make_plan(
    wanted: Schedule, existing: Sequence[RecurringRun], *, version: Version | None
) -> Plan:
    """Compare what is wanted with what is there.

    Args:
        wanted: The schedule.
        existing: All recurring runs of the experiment.
        version: Of the pipeline that is to run; None if it is not uploaded yet.
    """
    ours = [each for each in existing if each.name == wanted.name and is_ours(each)]
    same = [
        each
        for each in ours
        if version is not None
        and each.version_id == version.version_id
        and _state_of(each) == wanted.state
    ]
    kept = same[0] if same else None
    outdated = tuple(each for each in ours if each is not kept)
    action: Action = "keep"
    if kept is None:
        action = "replace" if outdated else "create"
    elif kept.enabled != wanted.enabled:
        action = "switch on" if wanted.enabled else "switch off"
    elif outdated:
        action = "remove doubles of"
    return Plan(action, wanted, kept, outdated)


def is_ours(run: RecurringRun) -> bool:
    """Tell whether a recurring run was made by `schedule apply`."""
    return bool(_state_of(run))


def _state_of(run: RecurringRun) -> str:
    found = _MARKED.search(run.description)
    return found[1] if found else ""
