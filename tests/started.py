"""Processes that tests start, and that end with the test whatever happens in it."""

import subprocess
from contextlib import contextmanager, suppress

import psutil


@contextmanager
def started(command, **options):
    """Start a process; kill it and its descendants if they are left at the end of the block.

    Arguments are those of `subprocess.Popen`. A test that fails inside `with Popen(...)` waits for
    the process instead, and one without `with` leaves it to the tests that follow.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                for each in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            process.kill()
