"""The pipeline, its runs and its recurring runs in an experiment of Kubeflow Pipelines."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_pipelines.errors import KubeflowError
from polarmask_pipelines.kfp_calls import KubeflowCalls
from polarmask_pipelines.package import Package

_PAGE_SIZE = 200
_POLL_SECONDS = 5.0
SUCCEEDED = {"SUCCEEDED", "SKIPPED"}
CANCELED = {"CANCELING", "CANCELED", "CANCELLED"}
"""A run that somebody ended is in one of these. Kubeflow 2.17 lets it end as FAILED afterwards."""
_ENDED = {*SUCCEEDED, "FAILED", "CANCELED", "CANCELLED"}


class Kubeflow:
    """A Kubeflow Pipelines server, as one user sees one experiment.

    Attributes:
        client: `kfp.Client`; a call that fails raises KubeflowError.
        experiment_id: None if the experiment does not exist.
    """

    def __init__(self, host: str, *, experiment: str, namespace: str = "", token: str = "") -> None:
        """Connect.

        Args:
            host: http(s) address of Kubeflow Pipelines' UI or API.
            experiment: Its name.
            namespace: The user's, where Kubeflow serves several users; else "".
            token: Bearer token; "" for none.

        Raises:
            KubeflowError: The server can't be reached, or refuses the token or the namespace; or
                the experiment is archived.
        """
        self._calls = KubeflowCalls(host, token=token)
        self.client = self._calls.client
        if self._calls.is_multi_user and not namespace:
            raise KubeflowError(
                f"{self._calls.host} serves several users: give --namespace or set KFP_NAMESPACE"
            )
        self._namespace = {"namespace": namespace} if namespace else {}
        self._experiment = experiment
        self.experiment_id = self._find_experiment()

    def _find_experiment(self) -> str | None:
        # client.list_experiments would send a namespace to a server of one user, too.
        experiments = self.client.experiments.experiment_service_list_experiments
        for each in _all(experiments, "experiments", **self._namespace):
            if each.display_name == self._experiment:
                if each.storage_state == "ARCHIVED":
                    raise KubeflowError(
                        f"experiment {self._experiment} is archived; restore it in the UI of "
                        f"{self._calls.host} or give another --experiment"
                    )
                return str(each.experiment_id)
        return None

    def find_version(self, package: Package) -> str | None:
        """Return the id of the version with the package's content, if it was uploaded."""
        pipeline_id = self._find_pipeline(package)
        if pipeline_id is None:
            return None
        versions = _all(
            self.client.list_pipeline_versions, "pipeline_versions", pipeline_id=pipeline_id
        )
        ids = (str(each.pipeline_version_id) for each in versions if each.name == package.version)
        return next(ids, None)

    def _find_pipeline(self, package: Package) -> str | None:
        pipelines = _all(self.client.list_pipelines, "pipelines", **self._namespace)
        ids = (str(each.pipeline_id) for each in pipelines if each.name == package.name)
        return next(ids, None)

    def create_missing(self, package: Package) -> dict[str, str]:
        """Create experiment, pipeline and version, if they do not exist.

        Returns:
            Their ids by name, as arguments of `client.run_pipeline` and
            `client.create_recurring_run`.
        """
        client, models = self.client, self.client.api_models
        if self.experiment_id is None:
            experiment = client.experiments.experiment_service_create_experiment(
                experiment=models.V2beta1Experiment(
                    display_name=self._experiment, **self._namespace
                )
            )
            self.experiment_id = str(experiment.experiment_id)
        pipeline_id = self._find_pipeline(package)
        if pipeline_id is None:
            pipeline = client.pipelines.pipeline_service_create_pipeline(
                pipeline=models.V2beta1Pipeline(
                    name=package.name, display_name=package.name, **self._namespace
                )
            )
            pipeline_id = pipeline.pipeline_id
        return {
            "experiment_id": self.experiment_id,
            "pipeline_id": pipeline_id,
            "version_id": self.find_version(package) or self._upload(package, pipeline_id),
        }

    def _upload(self, package: Package, pipeline_id: str) -> str:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(package.text, encoding="utf-8")
            version = self.client.pipeline_uploads.upload_pipeline_version(
                uploadfile=str(path), name=package.version, pipelineid=pipeline_id
            )
        return str(version.pipeline_version_id)

    def follow(self, run_id: str) -> Iterator[Any]:
        """Yield a run at each new state, until it ended."""
        self._calls.retry_seconds = DEADLINE_SECONDS
        state = ""
        while state not in _ENDED:
            run = self.client.get_run(run_id)
            if run.state != state:
                state = run.state
                yield run
            else:
                time.sleep(_POLL_SECONDS)

    def recurring_runs(self) -> list[Any]:
        """Return all recurring runs of the experiment, those of others included."""
        if self.experiment_id is None:
            return []
        runs = self.client.list_recurring_runs
        return list(_all(runs, "recurring_runs", experiment_id=self.experiment_id))

    def delete_recurring_run(self, recurring_run: Any) -> bool:  # noqa: ANN401  # the client has no types
        """Delete a recurring run of the experiment; the runs that it started continue.

        A server before Kubeflow Pipelines 2.16 ends the runs with it. There it is switched off
        while a run lasts, and deleted by a later call.

        Returns:
            Whether it is deleted, and not only switched off.
        """
        identity = recurring_run.recurring_run_id
        if not self._calls.can_orphan():
            if recurring_run.mode == "ENABLE":  # before the look: it may start one meanwhile
                self.client.disable_recurring_run(identity)
            runs = _all(self.client.list_runs, "runs", experiment_id=str(self.experiment_id))
            if any(run.recurring_run_id == identity and run.state not in _ENDED for run in runs):
                return False
        self.client.recurring_runs.recurring_run_service_delete_recurring_run(
            identity, propagation_policy="ORPHAN"
        )
        return True


def _all(list_page: Callable[..., Any], field: str, **arguments: str) -> Iterator[Any]:
    """Yield the items of all pages of a list."""
    token: str | None = ""
    while token is not None:
        page = list_page(page_size=_PAGE_SIZE, page_token=token, **arguments)
        yield from getattr(page, field) or []
        token = page.next_page_token or None
