"""What all tests share."""

import os

# Two threads per process on two cores make parallel runs wait for each other; set before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
