"""How the training job of a run is found again: its kind, its name, and the workflow of the run.

No settings of a training are needed, so the exit step can end a job in the small image.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import call_api, connect, own_namespace, refusal_of
from polarmask_components.errors import ClusterError
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.train_on import AUTO, PYTORCHJOB, TRAINJOB
from polarmask_components.retry import SHORT_DEADLINE_SECONDS

_OWN_POD = "KFP_POD_NAME"
"""Set by Kubeflow in the containers of steps."""


@dataclass(frozen=True)
class JobResource:
    """A kind of object that trains, and its place in the API of Kubernetes."""

    kind: str
    group: str
    version: str
    plural: str
    controller: str
    """What has to be installed for such jobs to run."""

    @property
    def api_version(self) -> str:
        """Group and version, as manifests write them."""
        return f"{self.group}/{self.version}"


JOB_RESOURCES = {
    PYTORCHJOB: JobResource(
        "PyTorchJob", "kubeflow.org", "v1", "pytorchjobs", "training-operator v1"
    ),
    TRAINJOB: JobResource(
        *("TrainJob", "trainer.kubeflow.org", "v1alpha1", "trainjobs"), "Kubeflow Trainer 2.2"
    ),
}
"""By the value of `train_on`."""


def job_name(run_id: str) -> str:
    """Return the job's name for a run: the same each time the run is retried."""
    return f"polarmask-train-{hashlib.sha256(run_id.encode()).hexdigest()[:10]}"


def of_own_pod(api: ApiClient) -> tuple[str, dict[str, Any] | None]:
    """Return this step's image, and a reference to the workflow it belongs to, if any.

    A job that belongs to the workflow is deleted with it.

    Raises:
        ClusterError: The cluster can't be reached or refuses.
    """
    name = os.environ.get(_OWN_POD)
    if not name:
        return TRAINER_IMAGE, None
    try:
        pod = call_api(CoreV1Api(api).read_namespaced_pod, name, own_namespace())
    except ApiException as error:
        raise ClusterError(f"this step's own pod {name} can't be read: {error.reason}") from error
    images = {container.name: container.image for container in pod.spec.containers}
    plain = api.sanitize_for_serialization(pod.metadata.owner_references or [])
    fields = ("apiVersion", "kind", "name", "uid")
    owners = [{name: each[name] for name in fields} for each in plain if each["kind"] == "Workflow"]
    return images.get("main", TRAINER_IMAGE), owners[0] if owners else None


def end_job_of_run(namespace: str, on: str = AUTO) -> str:
    """Delete the training job of the workflow that this step is in; return a line for the log.

    For the exit step, when no train step can follow the job any more. Raises no error.

    Args:
        namespace: Of the job; empty for that of this step.
        on: Kind of the job, as in `train_on`; any kind for `auto` and for values that do not exist,
            which the exit step of a refused run gets, too.
    """
    namespace = namespace or own_namespace()
    known = JOB_RESOURCES.get(on)
    kinds = [known] if known else JOB_RESOURCES.values()
    try:
        api = connect()
        _, owner = of_own_pod(api)
        if owner is None:
            return "this step is in no workflow, so it has no training job"
        deleted = _delete_jobs(api, kinds, namespace, job_name(owner["name"]))
    except ApiException as error:
        return f"whether a training job is left is not known: {refusal_of(error)}"
    except ClusterError as error:
        return f"whether a training job is left is not known: {error}"
    if not deleted:
        return "no training job is left"
    return f"{' and '.join(deleted)} was left without its train step, and is deleted"


def _delete_jobs(
    api: ApiClient, kinds: Iterable[JobResource], namespace: str, name: str
) -> list[str]:
    """Delete the jobs of a name; return which there were."""
    deleted = []
    for each in kinds:
        try:
            call_api(
                CustomObjectsApi(api).delete_namespaced_custom_object,
                *(each.group, each.version, namespace, each.plural, name),
                deadline_seconds=SHORT_DEADLINE_SECONDS,
            )
        except ApiException as error:
            if error.status != 404:  # 404 where the cluster knows no such kind, too
                raise
        else:
            deleted.append(f"{each.kind} {namespace}/{name}")
    return deleted
