"""Training on a cluster: from the request to a job, and from the job to the results."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kubernetes.client import ApiClient

from polarmask.errors import ConfigError
from polarmask_components.cluster.connection import (
    connect,
    own_namespace,
)
from polarmask_components.errors import LaunchError, StorageError
from polarmask_components.parameters.train_on import AUTO
from polarmask_components.parameters.training_request import InitialModel, TrainingRequest
from polarmask_components.storage.address import split_uri
from polarmask_components.training.artifacts import TrainingOutputs
from polarmask_components.training.initial_model import INPUT, fetched
from polarmask_components.training.job_identity import job_name, of_own_pod
from polarmask_components.training.job_launcher import PACE, Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.training_job import TrainingJob


def train_on_cluster(
    request: TrainingRequest,
    *,
    data: Path,
    labels: Path,
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
    job = make_job(request, api, flags=flags, run_id=run_id)
    storage = JobStorage(request.storage, job.name)
    if failure := storage.fresh_failure():
        raise LaunchError(failure)
    if storage.result() is None:
        store_inputs(storage, {"data": data, "labels": labels}, request.initial)
    try:
        result = run_job(job, storage, api, pace=pace)
    except LaunchError as error:
        with suppress(StorageError):
            storage.write_failure(str(error))
        raise
    storage.fetch_result(result, model=outputs.model, run=outputs.run)
    storage.forget_snapshots(result)


def store_inputs(
    storage: JobStorage, folders: Mapping[str, Path], initial: InitialModel | None
) -> None:
    """Store what the pods fetch, with the model to start from.

    A repeated step takes the model that the first try stored: its address may be valid no longer.

    Args:
        storage: Of the job.
        folders: Data and labels by name.
        initial: What to start from; None: from scratch.

    Raises:
        StorageError: The model, or the storage, can't be read.
        DamagedObjectError: The model's place holds something else by now.
    """
    kept = {} if initial is None else storage.stored_input(INPUT)
    if initial is not None and [each.sha256 for each in kept.values()] == [initial.sha256]:
        storage.store_inputs(folders, kept={INPUT: kept})
        return
    with fetched(initial) as folder:
        storage.store_inputs({**folders, **({} if folder is None else {INPUT: folder})})


def make_job(
    request: TrainingRequest, api: ApiClient, *, flags: Sequence[str], run_id: str
) -> TrainingJob:
    """Return the job for a request.

    Raises:
        ConfigError: Names the parameter of the pipeline that can't work.
    """
    try:
        split_uri(request.storage)
    except StorageError as error:
        raise ConfigError(f"train_storage: {error}; pods on a cluster share no disk") from error
    image, owner = of_own_pod(api)
    run_id = run_id or (owner["name"] if owner else "")
    if not run_id:
        raise ConfigError(
            "run_id is empty and this step is in no workflow: it needs the id of its run, to find "
            "its job again"
        )
    if request.on == AUTO:
        raise ConfigError("train_on=auto: preflight decides it; give a kind of job here")
    namespace = request.job.namespace or own_namespace()
    return TrainingJob(
        name=job_name(run_id),
        namespace=namespace,
        image=request.job.image or image,
        request=request,
        flags=tuple(flags),
        # An owner has to be in the namespace of what it owns.
        owner=owner if namespace == own_namespace() else None,
    )
