"""What a pod of a training job runs: fetch the inputs, train with torchrun, store the results.

    python -m polarmask_components.training.training_pod \
        --storage s3://bucket/training --job NAME --spec HASH --workspace /workspace \
        -- --preset coco-r50-1x --provenance data_commit=3f2a1bc

One a node. torchrun finds its nodes in PET_* of the environment, which the training operator
sets. Each checkpoint is copied to object storage while training continues. A pod that starts again,
here or elsewhere, fetches only what is not there and resumes from the newest checkpoint.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from polarmask.system.command_line import run_command
from polarmask_components.errors import ComponentError, LaunchError, StorageError
from polarmask_components.signals import on_stop_signal
from polarmask_components.training.initial_model import INPUT, flags_for
from polarmask_components.training.job_storage import JobStorage
from polarmask_components.training.run_snapshots import upload_snapshots
from polarmask_components.training.torchrun import run_to_end

logger = logging.getLogger(__name__)

REFUSED = 2
"""Exit code of errors that a retry would not fix, such as a setting that can't work."""
_ENDED_BY_SIGTERM = 143
_SECONDS_FOR_RESULT = 10 * 60.0
"""For the first node to store the results, after training ended on this one."""
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_STARTS = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one pod.

    Returns:
        The exit code: 0, 1 for errors that a restart may fix, or REFUSED.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(lambda: _run_pod(options), prefix="training pod")


def _run_pod(options: argparse.Namespace) -> int:
    # The first process of a container gets SIGTERM only with a handler.
    with on_stop_signal(lambda *_: sys.exit(_ENDED_BY_SIGTERM)):
        try:
            _run(options)
        except LaunchError as error:
            # Again at the end, without torchrun's long report: the launcher shows the last lines.
            logger.error("training pod: %s", error)
            return REFUSED if refusal_file(options.workspace).is_file() else 1
        except (ComponentError, OSError) as error:
            logger.error("training pod: %s", error)
            return 1
    return 0


def refusal_file(workspace: Path) -> Path:
    """Return the file that a training process creates if a retry would not help."""
    return workspace / "refused"


def run_folder(workspace: Path) -> Path:
    """Return the run folder on a node's disk."""
    return workspace / "run"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="training_pod", description="train as one node of a training job"
    )
    parser.add_argument("--storage", required=True, help="s3://bucket/prefix of all jobs")
    parser.add_argument("--job", required=True, help="name of this job, its folder there")
    parser.add_argument("--spec", required=True, help="hash of the job's spec")
    parser.add_argument("--workspace", type=Path, required=True, help="folder on this node")
    parser.add_argument("settings", nargs="*", help="flags of polarmask train, after --")
    return parser


def _run(options: argparse.Namespace) -> None:
    storage = JobStorage(options.storage, options.job)
    if _is_finished(storage, options.spec):
        logger.info("%s holds the result already", storage.where)
        return
    storage.fetch_inputs(options.workspace)
    run = run_folder(options.workspace)
    refusal_file(options.workspace).unlink(missing_ok=True)
    if not (run / "model").is_dir():  # else the pod was killed while it stored the result
        run.mkdir(parents=True, exist_ok=True)
        _start_together(storage)
        with upload_snapshots(run, options.storage, options.job):
            run_to_end(_torchrun_command(options))
    if (run / "model").is_dir():  # on the first node only
        storage.store_result(run / "model", run, spec=options.spec)
    else:
        _wait_for_result(storage, options.spec)


def _start_together(storage: JobStorage) -> None:
    """Restart the other nodes whenever the first one restarts.

    A node that comes back earlier than the first one would join the rendezvous of the start
    before, and both would wait for each other.
    """
    rank = os.environ.get("PET_NODE_RANK")
    if rank is None:  # elastic: torchrun itself brings the nodes together
        return
    if rank == "0":
        storage.write_start(uuid4().hex)
    else:
        threading.Thread(target=_end_with_start, args=(storage,), daemon=True).start()


def _end_with_start(storage: JobStorage) -> None:
    """Send SIGTERM to this process when the first node has started again."""
    known = ""
    while True:
        with suppress(StorageError):  # the storage may be away for a while
            found = storage.start()
            if known and found != known:
                logger.info("the first node started again: so does this one")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            known = found
        time.sleep(_SECONDS_BETWEEN_STARTS)


def _torchrun_command(options: argparse.Namespace) -> list[str]:
    workspace: Path = options.workspace
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("-m", "polarmask_components.training.training_process"),
        *("--storage", options.storage, "--job", options.job, "--workspace", str(workspace), "--"),
        *("train", "--data", str(workspace / "data"), "--labels", str(workspace / "labels")),
        *("--out", str(run_folder(workspace)), *options.settings),
        *flags_for(workspace / INPUT),
    ]


def _is_finished(storage: JobStorage, spec: str) -> bool:
    result = storage.result()
    return result is not None and result.spec == spec


def _wait_for_result(storage: JobStorage, spec: str) -> None:
    """Wait until the first node has stored the result: if it is lost, its retry needs this node.

    Raises:
        LaunchError: It did not; after a restart both resume from the last snapshot.
    """
    give_up = time.monotonic() + _SECONDS_FOR_RESULT
    while not _is_finished(storage, spec):
        if time.monotonic() > give_up:
            raise LaunchError(f"the first node left no result in {storage.where}")
        time.sleep(_SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
