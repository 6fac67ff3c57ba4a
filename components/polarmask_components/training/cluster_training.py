"""The train step on a cluster: from its parameters to a job, and from the job to its outputs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask.errors import ConfigError
from polarmask_components.cluster.connection import call_api, connect, own_namespace
from polarmask_components.errors import ClusterError, StorageError
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.run.job_settings import read_job_settings
from polarmask_components.run.run_settings import check_shares
from polarmask_components.storage.client import split_uri
from polarmask_components.storage.manifest import manifest_of
from polarmask_components.training.job_launcher import PACE, Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.pytorchjob import TrainingJob, job_name

_OWN_POD = "KFP_POD_NAME"
"""Set by Kubeflow in the containers of steps."""


@dataclass(frozen=True)
class StoredFolder:
    """An input of a step: in object storage, and Kubeflow's copy of it on this machine."""

    uri: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """The parameters of the step that only a cluster needs."""

    nodes: int
    min_nodes: int
    processes_per_node: int
    """0: one for each GPU of a node, or one."""
    job: Mapping[str, Any]
    """Fields of `JobSettings`."""
    storage: str
    run_id: str
    """The same each time this run is tried; empty: the name of the workflow this step is in."""


def train_on_cluster(
    request: ClusterRequest,
    *,
    data: StoredFolder,
    labels: StoredFolder,
    flags: Sequence[str],
    batch_size: int,
    model: Path,
    run: Path,
    pace: Pace = PACE,
) -> None:
    """Train as a PyTorchJob and fetch what it learned.

    Tried again, it goes on with the job of the try before, or takes its result.

    Args:
        request: Where and how.
        data: COCO folder.
        labels: Label store.
        flags: Of `polarmask train`.
        batch_size: Images a step.
        model: Where the model folder goes.
        run: Where the run folder goes.
        pace: For tests.

    Raises:
        ConfigError: Names the parameter of the pipeline that can't work.
        StorageError, ClusterError, LaunchError: See there.
    """
    api = connect()
    job = make_job(request, api, data=data.uri, labels=labels.uri, flags=flags, batch=batch_size)
    storage = JobStorage(request.storage, job.name)
    if storage.result() is None:
        storage.write_inputs({"data": manifest_of(data.path), "labels": manifest_of(labels.path)})
    result = run_job(job, storage, api, pace=pace)
    storage.fetch_result(result, model=model, run=run)
    storage.forget_snapshots(result)


def make_job(
    request: ClusterRequest,
    api: ApiClient,
    *,
    data: str,
    labels: str,
    flags: Sequence[str],
    batch: int,
) -> TrainingJob:
    """Return the job that the parameters ask for.

    Raises:
        ConfigError: Names the parameter of the pipeline that can't work.
    """
    settings = read_job_settings(request.job)
    processes = settings.processes_per_node(request.processes_per_node)
    if processes < 1:
        raise ConfigError(f"train_processes_per_node is {processes}: give 1 or more, or 0")
    check_shares(
        batch, nodes=request.nodes, min_nodes=request.min_nodes, processes_per_node=processes
    )
    _require_object_storage(request.storage, "train_storage")
    for uri in (data, labels):
        _require_object_storage(uri, "an input of training on a cluster")
    image, owner = _of_own_pod(api)
    run_id = request.run_id or (owner["name"] if owner else "")
    if not run_id:
        raise ConfigError(
            "run_id is empty and this step is in no workflow: it needs the id of its run, to find "
            "its job again"
        )
    namespace = settings.namespace or own_namespace()
    return TrainingJob(
        name=job_name(run_id),
        namespace=namespace,
        image=settings.image or image,
        nodes=request.nodes,
        min_nodes=request.min_nodes,
        processes_per_node=processes,
        settings=settings,
        data=data,
        labels=labels,
        storage=request.storage,
        flags=tuple(flags),
        # No object may belong to one of another namespace.
        owner=owner if namespace == own_namespace() else None,
    )


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
    owner = next(
        (
            {
                "apiVersion": each.api_version,
                "kind": each.kind,
                "name": each.name,
                "uid": each.uid,
            }
            for each in pod.metadata.owner_references or ()
            if each.kind == "Workflow"
        ),
        None,
    )
    return images.get("main", TRAINER_IMAGE), owner
