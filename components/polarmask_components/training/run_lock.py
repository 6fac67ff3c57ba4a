"""Child processes end with the run that started them, even if it is killed.

The run holds a lock on a file and names the file in the environment of its steps. The lock ends
with the run, however that ends; then the step that waits for the lock ends its child.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarmask_components.errors import LaunchError

VARIABLE = "POLARMASK_RUN_LOCK"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@contextmanager
def run_lock(file: Path) -> Iterator[None]:
    """Hold the file's lock; processes started inside the block find it in their environment.

    Raises:
        LaunchError: Another run holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                f"another run uses {file.parent}; wait for it or choose another folder"
            ) from error
        os.environ[VARIABLE] = str(file)
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def end_with_run(child: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the child once the run's lock is free; without a run lock do nothing."""
    file = os.environ.get(VARIABLE)
    if file is not None:
        threading.Thread(target=_end_when_free, args=(file, child), daemon=True).start()


def _end_when_free(file: str, child: subprocess.Popen[bytes]) -> None:
    with Path(file).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    child.terminate()


def die_with_parent() -> None:
    """Let this process get SIGTERM when its parent dies; Linux only. For `preexec_fn`."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
