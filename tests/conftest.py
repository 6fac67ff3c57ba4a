"""What all tests share."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from slow_calls import is_slow

# Before torch loads: two threads per process on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# nohup and background jobs ignore these signals, and what tests start would inherit that. A handler
# is not inherited: here the signal still does nothing, a child has its default.
for number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, lambda *_: None)

pytest_plugins = ["s3_server"]

NOT_BY_DEFAULT = {"slow", "faults", "gpu", "images", "fuzz", "browser"}

# A slow machine is no failure, so neither time limit of hypothesis counts.
settings.register_profile(
    "polarmask",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("polarmask")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items):
    """Mark as fast what starts no process and trains nothing, fixtures included."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        functions = [item.function, *(each.func for found in fixtures for each in found)]
        marks = {mark.name for mark in item.iter_markers()}
        if not marks & NOT_BY_DEFAULT and not any(map(is_slow, functions)):
            item.add_marker("fast")
