"""What all tests share."""

import os

# Before torch loads: two threads per process on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["s3_server"]
