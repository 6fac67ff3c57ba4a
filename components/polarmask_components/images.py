"""Container images of the steps, read from the environment when a pipeline is compiled.

Locally no image is used: steps run in the environment that started them.
"""

import os

TRAINER_IMAGE = os.environ.get("POLARMASK_TRAINER_IMAGE", "polarmask-trainer:0.1.0-python3.11")
"""torch and all our packages: for steps that compute or serve."""

OPS_IMAGE = os.environ.get("POLARMASK_OPS_IMAGE", "polarmask-ops:0.1.0-python3.11")
"""Without torch: for steps that decide, look up or notify."""
