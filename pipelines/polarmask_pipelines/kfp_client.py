"""What Kubeflow Pipelines is asked for: pipeline versions, experiments, runs, recurring runs."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_pipelines.errors import KubeflowError
from polarmask_pipelines.kfp_calls import KubeflowCalls
from polarmask_pipelines.package import Package

_SECONDS_BETWEEN_LOOKS = 5.0
_ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


@dataclass(frozen=True)
class Version:
    """A pipeline version on the server."""

    pipeline_id: str
    version_id: str


@dataclass(frozen=True)
class RunState:
    """How a run is, or ended."""

    state: str
    """As Kubeflow says: PENDING, RUNNING, SUCCEEDED, SKIPPED, FAILED, CANCELING, CANCELED, ..."""
    failed: tuple[str, ...]
    """Names of the tasks that failed."""
    error: str

    @property
    def succeeded(self) -> bool:
        """Whether the run ended well."""
        return self.state in ("SUCCEEDED", "SKIPPED")


@dataclass(frozen=True, kw_only=True)
class RecurringRun:
    """A recurring run on the server."""

    id: str
    name: str
    description: str
    cron: str
    """Six fields, seconds first; "" if it is no cron schedule."""
    enabled: bool
    version_id: str
    parameters: dict[str, Any]


class Kubeflow:
    """One Kubeflow Pipelines API server, as one user."""

    def __init__(self, host: str, *, namespace: str = "", token: str = "") -> None:
        """Connect.

        Args:
            host: http(s) address of Kubeflow Pipelines' UI or API.
            namespace: Of the user, where Kubeflow serves several; else empty.
            token: Bearer token; empty for none.

        Raises:
            KubeflowError: It can't be reached, or the token or namespace does not do.
        """
        self._calls = KubeflowCalls(host, token=token)
        self._api, self._models = self._calls.api, self._calls.models
        self._namespace = {"namespace": namespace} if namespace else {}
        if self._calls.is_multi_user() and not namespace:
            raise KubeflowError(
                f"{self._calls.host} serves several users: give --namespace or set KFP_NAMESPACE"
            )

    def find_version(self, package: Package) -> Version | None:
        """Return the version of this content, if it was uploaded."""
        pipeline_id = self._find_pipeline(package.name)
        if pipeline_id is None:
            return None
        versions = self._calls.all(
            self._api.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            pipeline_id=pipeline_id,
        )
        for each in versions:
            if each.name == package.version:
                return Version(pipeline_id, each.pipeline_version_id)
        return None

    def upload(self, package: Package) -> Version:
        """Upload a package as a new version of its pipeline, which is made if there is none."""
        pipeline_id = self._find_pipeline(package.name)
        if pipeline_id is None:
            pipeline = self._models.V2beta1Pipeline(
                name=package.name, display_name=package.name, **self._namespace
            )
            pipeline_id = self._calls.write(
                self._api.pipelines.pipeline_service_create_pipeline, pipeline=pipeline
            ).pipeline_id
        with TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(package.text, encoding="utf-8")
            version = self._calls.write(
                self._api.pipeline_uploads.upload_pipeline_version,
                uploadfile=str(path),
                name=package.version,
                pipelineid=pipeline_id,
            )
        return Version(pipeline_id, version.pipeline_version_id)

    def _find_pipeline(self, name: str) -> str | None:
        pipelines = self._calls.all(
            self._api.pipelines.pipeline_service_list_pipelines, "pipelines", **self._namespace
        )
        return next((each.pipeline_id for each in pipelines if each.name == name), None)

    def find_experiment(self, name: str) -> str | None:
        """Return the id of an experiment, if there is one of this name."""
        experiments = self._calls.all(
            self._api.experiments.experiment_service_list_experiments,
            "experiments",
            **self._namespace,
        )
        for each in experiments:
            found = each.display_name == name
            if found and each.storage_state == "ARCHIVED":
                raise KubeflowError(
                    f"experiment {name} is archived; restore it in the UI of {self._calls.host} "
                    "or give another --experiment"
                )
            if found:
                return str(each.experiment_id)
        return None

    def create_experiment(self, name: str) -> str:
        """Make an experiment; return its id."""
        experiment = self._models.V2beta1Experiment(display_name=name, **self._namespace)
        made = self._calls.write(
            self._api.experiments.experiment_service_create_experiment, experiment=experiment
        )
        return str(made.experiment_id)

    def create_run(
        self,
        name: str,
        *,
        experiment_id: str,
        version: Version,
        parameters: Mapping[str, Any],
        service_account: str = "",
    ) -> str:
        """Start a run; return its id."""
        run = self._models.V2beta1Run(
            display_name=name,
            **self._what_runs(experiment_id, version, parameters, service_account),
        )
        return str(self._calls.write(self._api.runs.run_service_create_run, run=run).run_id)

    def address_of_run(self, run_id: str) -> str:
        """Return where people look at a run."""
        return f"{self._calls.host}/#/runs/details/{run_id}"

    def follow(self, run_id: str, tell: Callable[[str], None]) -> RunState:
        """Wait until a run ended; tell each state it comes to."""
        told = ""
        while True:
            now = self._state(run_id)
            if now.state != told:
                tell(now.state.lower())
                told = now.state
            if now.state in _ENDED:
                return now
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _state(self, run_id: str) -> RunState:
        run = self._calls.read(
            partial(self._api.runs.run_service_get_run, run_id=run_id),
            deadline_seconds=DEADLINE_SECONDS,
        )
        tasks = (run.run_details and run.run_details.task_details) or []
        failed = [each.display_name for each in tasks if each.state == "FAILED"]
        message = (run.error and run.error.message) or ""
        return RunState(run.state or "PENDING", tuple(failed), message)

    def recurring_runs(self, experiment_id: str) -> list[RecurringRun]:
        """Return all recurring runs of an experiment, whoever made them."""
        found = self._calls.all(
            self._api.recurring_runs.recurring_run_service_list_recurring_runs,
            "recurring_runs",
            experiment_id=experiment_id,
        )
        return [_recurring_run(each) for each in found]

    def create_recurring_run(
        self,
        name: str,
        *,
        description: str,
        cron: str,
        enabled: bool,
        experiment_id: str,
        version: Version,
        parameters: Mapping[str, Any],
        service_account: str = "",
    ) -> None:
        """Make a recurring run: one run at a time, and none for times that passed."""
        schedule = self._models.V2beta1CronSchedule(cron=cron)
        recurring_run = self._models.V2beta1RecurringRun(
            display_name=name,
            description=description,
            trigger=self._models.V2beta1Trigger(cron_schedule=schedule),
            mode="ENABLE" if enabled else "DISABLE",
            max_concurrency="1",
            no_catchup=True,  # a new one looks as if it had missed all times before
            **self._what_runs(experiment_id, version, parameters, service_account),
        )
        self._calls.write(
            self._api.recurring_runs.recurring_run_service_create_recurring_run,
            recurring_run=recurring_run,
        )

    def switch_recurring_run(self, identity: str, *, enabled: bool) -> None:
        """Switch a recurring run on or off."""
        service = self._api.recurring_runs
        on = service.recurring_run_service_enable_recurring_run
        off = service.recurring_run_service_disable_recurring_run
        self._calls.write(on if enabled else off, recurring_run_id=identity)

    def delete_recurring_run(self, identity: str) -> None:
        """Delete a recurring run; runs that it started go on."""
        self._calls.write(
            self._api.recurring_runs.recurring_run_service_delete_recurring_run,
            recurring_run_id=identity,
        )

    def _what_runs(
        self,
        experiment_id: str,
        version: Version,
        parameters: Mapping[str, Any],
        service_account: str,
    ) -> dict[str, Any]:
        """Return the fields that runs and recurring runs share."""
        return {
            "experiment_id": experiment_id,
            "pipeline_version_reference": self._models.V2beta1PipelineVersionReference(
                pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
            ),
            "runtime_config": self._models.V2beta1RuntimeConfig(parameters=dict(parameters)),
            "service_account": service_account or None,
        }


def _recurring_run(found: Any) -> RecurringRun:  # noqa: ANN401
    reference, config = found.pipeline_version_reference, found.runtime_config
    schedule = found.trigger and found.trigger.cron_schedule
    return RecurringRun(
        id=found.recurring_run_id,
        name=found.display_name,
        description=found.description or "",
        cron=(schedule and schedule.cron) or "",
        enabled=found.mode == "ENABLE",
        version_id=(reference and reference.pipeline_version_id) or "",
        parameters=(config and config.parameters) or {},
    )
