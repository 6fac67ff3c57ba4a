"""What the paper's code does differently in the loss.

Dimension key
    P: positive locations    R: rays
"""

import torch
from torch import Tensor

from polarmask.system.distributed import world_size

BOX_MARGIN = 0.5
"""Pixels added to each side of a box: the paper's code counts both end pixels."""


def polar_centerness(ray_PR: Tensor) -> Tensor:
    """sqrt(shortest / longest ray), in (0, 1] (PolarMask, section 3.3)."""
    return (ray_PR.amin(dim=1) / ray_PR.amax(dim=1)).sqrt()


def loss_divisors(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide by what each process has and average over processes; see `network.losses`.

    The class loss counts images among the positives. Weights that are all 0 make the loss NaN.
    """
    positives = counts["positives"].clamp(min=1)
    weight = torch.where(counts["positives"] > 0, counts["weight"], 1.0)
    class_count = counts["positives"] + counts["images"]
    divisors = {"class": class_count, "quality": positives, "ray": weight, "box": weight}
    return {name: value * world_size() for name, value in divisors.items()}
