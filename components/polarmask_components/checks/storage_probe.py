"""Does a pod like the training's reach object storage? Tried with one, which trains nothing.

It has the image, Secret, account, labels and namespace of the training's pods. So keys, network
rules, admission and the operator are proven by one small job, and preflight needs no right to read
Secrets or to create pods.

    python -m polarmask_components.checks.storage_probe --storage s3://bucket/training --job NAME \
        --spec HASH --workspace /workspace
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from polarmask_components.cluster.commands import how_to_make_secret
from polarmask_components.cluster.connection import connect
from polarmask_components.errors import LaunchError, NotStartedError, StorageError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.retry import SHORT_DEADLINE_SECONDS
from polarmask_components.training.cluster_training import make_job
from polarmask_components.training.job_launcher import Pace, run_job
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.training_job import TrainingJob
from polarmask_components.training.training_pod import REFUSED

logger = logging.getLogger(__name__)

PACE = Pace(look=1.0, stuck=20.0)
START_MINUTES = 2.0
"""For the pod to start; longer waiting is the cluster's load, and no reason to stop a run."""
_FILE = "probe"


@dataclass(frozen=True, kw_only=True)
class _Probe(TrainingJob):
    """A job whose one pod reads and writes in object storage."""

    def container(self) -> dict[str, Any]:
        """Return the container of the training, with another program."""
        return super().container() | {
            "command": ["python", "-m", "polarmask_components.checks.storage_probe"]
        }


def check_pods(request: TrainingRequest, *, pace: Pace = PACE) -> Iterator[str]:
    """Yield notes; nothing if a pod read a probe from `train_storage` and answered there.

    Args:
        request: Of a training on the cluster.
        pace: For tests.

    Raises:
        LaunchError: It could not; says why.
        ClusterError: The cluster can't be reached or refuses.
    """
    api = connect()
    # No node of its own: one with GPUs might have to be started for it.
    small = replace(
        request.job,
        gpus_per_node=0,
        node_selector={},
        cpu="100m",
        memory="1Gi",
        shm="16Mi",
        disk="1Gi",
        max_restarts=0,
        start_timeout_minutes=START_MINUTES,
        deadline_hours=4 * START_MINUTES / 60,
    )
    lone = replace(request, nodes=1, min_nodes=0, job=small)
    made = make_job(lone, api, flags=(), run_id=uuid4().hex)
    same = {each.name: getattr(made, each.name) for each in fields(TrainingJob)}
    probe = _Probe(**same | {"name": made.name.replace("-train-", "-probe-")})
    storage = JobStorage(request.storage, probe.name, deadline_seconds=0)
    try:
        with TemporaryDirectory() as folder:
            (Path(folder) / _FILE).write_text("read by preflight\n")
            storage.store_inputs({_FILE: Path(folder)})
        run_job(probe, storage, api, pace=pace)
    except NotStartedError as error:
        yield f"whether training pods can use {request.storage} is not known: {error}"
    except LaunchError as error:
        raise LaunchError(
            f"training pods can't use train_storage {request.storage}: "
            f"{error}; {_what_it_has(request.job, probe.namespace)}"
        ) from error
    finally:
        with suppress(StorageError):
            storage.remove()


def _what_it_has(job: JobSettings, namespace: str) -> str:
    if not job.secret:
        return f"pods in namespace {namespace} have no Secret (train_job.secret is empty)"
    return (
        f"pods in namespace {namespace} have address and keys from its Secret {job.secret} "
        f"(train_job.secret): {how_to_make_secret(job.secret, namespace)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the pod.

    Returns:
        The exit code: 0, or REFUSED.
    """
    parser = argparse.ArgumentParser(prog="storage_probe")
    for flag in ("--storage", "--job", "--spec"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("none", nargs="*")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        storage = JobStorage(options.storage, options.job, deadline_seconds=SHORT_DEADLINE_SECONDS)
        storage.fetch_inputs(options.workspace)
        found = options.workspace / _FILE
        storage.store_result(found, found, spec=options.spec)
    except StorageError as error:
        logger.error("storage probe: %s", error)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
