"""Training on a cluster: from the request to a job, and from the job to the results."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from polarmask.errors import ConfigError, PolarMaskError
from polarmask_components.cluster.connection import (
    call_api,
    connect,
    own_namespace,
    refusal_of,
)
from polarmask_components.errors import ClusterError, ComponentError, LaunchError, StorageError
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.job_settings import read_job_settings
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.retry import SHORT_DEADLINE_SECONDS
from polarmask_components.storage.client import split_uri
from polarmask_components.storage.manifest import manifest_of
from polarmask_components.training.artifacts import StoredFolder, TrainingOutputs
from polarmask_components.training.job_launcher import PACE, Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.pytorchjob import GROUP, PLURAL, VERSION
from polarmask_components.training.training_job import TrainingJob, job_name

_OWN_POD = "KFP_POD_NAME"
"""Set by Kubeflow in the containers of steps."""


def train_on_cluster(
    request: TrainingRequest,
    *,
    data: StoredFolder,
    labels: StoredFolder,
    flags: Sequence[str],
    outputs: TrainingOutputs,
    run_id: str,
    pace: Pace = PACE,
) -> None:
    """Train as a job on the cluster and fetch the results.

    Retried, it continues with the job of the try before, or takes its result. Kubeflow also
    retries a job that failed for good: then the same error comes at once.

    Args:
        request: What to train, and how.
        data: COCO folder.
        labels: Label store.
        flags: Of `polarmask train`.
        outputs: Where the results go.
        run_id: The same each time this run is retried; empty for the name of the workflow that
            this step is in.
        pace: For tests.

    Raises:
        ConfigError: Names the parameter of the pipeline that can't work.
        StorageError, ClusterError, LaunchError: See there.
    """
    api = connect()
    job = make_job(request, api, data=data.uri, labels=labels.uri, flags=flags, run_id=run_id)
    storage = JobStorage(request.storage, job.name)
    if storage.result() is None:
        storage.write_inputs({"data": manifest_of(data.path), "labels": manifest_of(labels.path)})
    if failure := storage.fresh_failure():
        raise LaunchError(failure)
    try:
        result = run_job(job, storage, api, pace=pace)
    except LaunchError as error:
        with suppress(StorageError):
            storage.write_failure(str(error))
        raise
    storage.fetch_result(result, model=outputs.model, run=outputs.run)
    storage.forget_snapshots(result)


def make_job(
    request: TrainingRequest,
    api: ApiClient,
    *,
    data: str,
    labels: str,
    flags: Sequence[str],
    run_id: str,
) -> TrainingJob:
    """Return the job for a request.

    Raises:
        ConfigError: Names the parameter of the pipeline that can't work.
    """
    _require_object_storage(request.storage, "train_storage")
    for uri in (data, labels):
        _require_object_storage(uri, "an input of training on a cluster")
    image, owner = _of_own_pod(api)
    run_id = run_id or (owner["name"] if owner else "")
    if not run_id:
        raise ConfigError(
            "run_id is empty and this step is in no workflow: it needs the id of its run, to find "
            "its job again"
        )
    namespace = request.job.namespace or own_namespace()
    return TrainingJob(
        name=job_name(run_id),
        namespace=namespace,
        image=request.job.image or image,
        request=request,
        data=data,
        labels=labels,
        flags=tuple(flags),
        # An owner has to be in the namespace of what it owns.
        owner=owner if namespace == own_namespace() else None,
    )


def end_job_of_run(job: Mapping[str, Any]) -> str:
    """Delete the training job of the workflow that this step is in; return a line for the log.

    For the exit step, when no train step can follow the job any more. Raises no error.

    Args:
        job: The pipeline's parameter `train_job`.
    """
    try:
        namespace = read_job_settings(job).namespace or own_namespace()
        api = connect()
        _, owner = _of_own_pod(api)
        if owner is None:
            return "this step is in no workflow, so it has no training job"
        name = job_name(owner["name"])
        call_api(
            CustomObjectsApi(api).delete_namespaced_custom_object,
            *(GROUP, VERSION, namespace, PLURAL, name),
            deadline_seconds=SHORT_DEADLINE_SECONDS,
        )
    except ApiException as error:
        if error.status == 404:
            return "no training job is left"
        return f"whether a training job is left is not known: {refusal_of(error)}"
    except (ComponentError, PolarMaskError) as error:
        return f"whether a training job is left is not known: {error}"
    return f"PyTorchJob {namespace}/{name} was left without its train step, and is deleted"


def _require_object_storage(uri: str, what: str) -> None:
    try:
        split_uri(uri)
    except StorageError as error:
        raise ConfigError(f"{what}: {error}; pods on a cluster share no disk") from error


def _of_own_pod(api: ApiClient) -> tuple[str, dict[str, Any] | None]:
    """Return this step's image, and a reference to the workflow it belongs to, if any.

    A job that belongs to the workflow is deleted with it.
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
