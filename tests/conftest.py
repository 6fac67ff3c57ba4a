"""What all tests share."""

import os

from hypothesis import HealthCheck, settings

# Before torch loads: two threads per process on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["s3_server"]

# A slow machine is no failure, so neither time limit of hypothesis counts.
settings.register_profile(
    "polarmask",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("polarmask")
