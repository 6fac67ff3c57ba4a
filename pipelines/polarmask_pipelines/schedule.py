"""Bring a recurring run to its wanted state; applied again, nothing changes.

Kubeflow can't change a recurring run, and allows several of one name. So the description of ours
holds a hash of the wanted state. Equal: kept. Different: a new one is created, then the old one is
deleted; runs that it started continue. Recurring runs without the hash belong to others and are
left alone.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from polarmask_pipelines.cron import with_seconds
from polarmask_pipelines.kfp_client import Kubeflow
from polarmask_pipelines.package import Package

_MARK = "made by `polarmask_pipelines schedule apply`, state "
_MARKED = re.compile(re.escape(_MARK) + "([0-9a-f]{16})")

Action = Literal["create", "replace", "switch on", "switch off", "remove duplicates of", "keep"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The wanted state of a recurring run."""

    name: str
    cron: str
    """Five fields, in the time zone of the cluster."""
    parameters: dict[str, Any]
    """Of the pipeline; the others keep their defaults."""
    service_account: str = ""
    """Account of the steps; "" for Kubeflow's default."""
    pipeline_root: str = ""
    """Where Kubeflow keeps artifacts; "" for its default."""
    enabled: bool = True

    def __post_init__(self) -> None:
        """Reject a schedule that Kubeflow would misread."""
        with_seconds(self.cron)

    @property
    def state(self) -> str:
        """Hash of all that can't be changed later, without the pipeline's version."""
        wanted = [with_seconds(self.cron), self.parameters, self.service_account]
        wanted += [self.pipeline_root] if self.pipeline_root else []
        return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """What to change on the server."""

    schedule: Schedule
    kept: Any
    """The recurring run in the wanted state, except that it may have to be switched on or off;
    None if there is none."""
    outdated: tuple[Any, ...]

    @property
    def action(self) -> Action:
        """The change in a word."""
        if self.kept is None:
            return "replace" if self.outdated else "create"
        if self._must_switch:
            return "switch on" if self.schedule.enabled else "switch off"
        return "remove duplicates of" if self.outdated else "keep"

    @property
    def _must_switch(self) -> bool:
        return bool(self.schedule.enabled != (self.kept.mode == "ENABLE"))

    def carry_out(self, kubeflow: Kubeflow, package: Package) -> int:
        """Change the server; after an interruption, the next `schedule apply` does the rest.

        Returns:
            How many outdated ones are switched off but not deleted yet: their runs continue.
        """
        client, wanted = kubeflow.client, self.schedule
        if self.kept is None:
            # Before the old one is deleted: a failure in between must not leave no schedule.
            client.create_recurring_run(
                **kubeflow.create_missing(package),
                job_name=wanted.name,
                description=f"PolarMask retraining, {wanted.cron}; {_MARK}{wanted.state}",
                cron_expression=with_seconds(wanted.cron),
                no_catchup=True,  # a new one looks as if it had missed all times before
                params=wanted.parameters,
                enabled=wanted.enabled,
                service_account=wanted.service_account or None,
                pipeline_root=wanted.pipeline_root or None,
            )
        elif self._must_switch:
            switch = client.enable_recurring_run if wanted.enabled else client.disable_recurring_run
            switch(self.kept.recurring_run_id)
        return sum(not kubeflow.delete_recurring_run(each) for each in self.outdated)


def make_plan(wanted: Schedule, existing: Sequence[Any], *, version_id: str | None) -> Plan:
    """Compare the wanted schedule with the existing ones.

    Args:
        wanted: The schedule.
        existing: All recurring runs of the experiment.
        version_id: Of the pipeline to run; None if it is not uploaded yet.
    """
    ours = [each for each in existing if each.display_name == wanted.name and is_ours(each)]
    same = (
        each
        for each in ours
        if each.pipeline_version_reference.pipeline_version_id == version_id
        and _state_of(each) == wanted.state
    )
    kept = next(same, None)
    return Plan(wanted, kept, tuple(each for each in ours if each is not kept))


def is_ours(run: Any) -> bool:  # noqa: ANN401  # the generated client has no types
    """Return whether a recurring run was made by `schedule apply`."""
    return bool(_state_of(run))


def _state_of(run: Any) -> str:  # noqa: ANN401  # the client has no types
    found = _MARKED.search(run.description or "")
    return found[1] if found else ""
