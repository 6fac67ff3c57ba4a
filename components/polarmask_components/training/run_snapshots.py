"""Snapshots of the run folder: to object storage while training runs, and back from there."""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarmask.system.files import atomic_path
from polarmask.training.run_folder import BEST, CHECKPOINT, take_snapshot
from polarmask_components.errors import StorageError
from polarmask_components.training.job_storage import JobStorage

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0
_DEADLINE_SECONDS = 60.0
"""The next look retries."""


@contextmanager
def upload_snapshots(run: Path, storage: str, job: str) -> Iterator[None]:
    """Store each new checkpoint of a run folder while the block runs.

    If the block fails, the last one is stored first: the node's disk may be lost.
    A storage that can't be reached does not delay training; the next checkpoint is tried.

    Args:
        run: Run folder.
        storage: s3://bucket/prefix of all jobs.
        job: Name of this one.
    """
    uploader = _Uploader(run, JobStorage(storage, job, deadline_seconds=_DEADLINE_SECONDS))
    done = threading.Event()

    def look() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            uploader.upload_newest()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # a signal, too: what was trained is stored
        done.set()
        thread.join()
        uploader.upload_newest()
        raise
    finally:
        done.set()
        thread.join()


class _Uploader:
    """Stores the newest checkpoint of a run, once."""

    def __init__(self, run: Path, storage: JobStorage) -> None:
        self._run = run
        self._storage = storage
        self._uploaded: tuple[int, int] | None = None

    def upload_newest(self) -> None:
        """Store the checkpoint if it is another one than at the last look."""
        stamp = _stamp(self._run / CHECKPOINT)
        if stamp is None or stamp == self._uploaded:
            return
        from polarmask.errors import CheckpointError
        from polarmask.training.checkpoint import read_step  # brings torch, which takes seconds

        copy = self._run.with_name(f".{self._run.name}.snapshot")
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        try:
            if take_snapshot(self._run, copy):
                self._storage.save_snapshot(copy, read_step(copy / CHECKPOINT))
                self._uploaded = stamp
        except (StorageError, CheckpointError, OSError) as error:
            logger.warning("the checkpoint is not stored: %s", error)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def restore_newest_snapshot(run: Path, storage: JobStorage) -> None:
    """Replace the files of a run folder by the newest snapshot, if that is newer.

    A checkpoint that can't be read is dropped.

    Raises:
        StorageError: There are newer snapshots, and none can be used.
    """
    from polarmask.errors import CheckpointError
    from polarmask.training.checkpoint import read_step

    own = run / CHECKPOINT
    step = -1
    if own.is_file():
        try:
            step = read_step(own)
        except CheckpointError as error:
            logger.warning("%s; it is dropped", error)
            own.unlink()
    fetched = run.with_name(f".{run.name}.restored")
    shutil.rmtree(fetched, ignore_errors=True)  # of a process that was killed
    found = storage.restore_snapshot(fetched, newer_than=step)
    if found is None:
        return
    run.mkdir(parents=True, exist_ok=True)
    if (fetched / BEST).is_dir():
        with atomic_path(run / BEST) as temporary:
            (fetched / BEST).replace(temporary)
    # The checkpoint last: it is what marks the other files as complete.
    for path in sorted(fetched.iterdir(), key=lambda path: path.name == CHECKPOINT):
        if path.is_file():
            path.replace(run / path.name)
    shutil.rmtree(fetched, ignore_errors=True)
    logger.info("fetched step %d from %s", found, storage.where)
