"""Group norm, sized by the settings of a model."""

import math

from torch import nn


def group_norm(channels: int, together: int) -> nn.GroupNorm:
    """Return group norm that takes `together` channels at a time, or a divisor where they differ.

    Args:
        channels: Of the input.
        together: `ModelConfig.norm_channels`; 0 makes 32 groups, as in the paper's code.
    """
    size = math.gcd(together, channels) if together else channels // math.gcd(32, channels)
    return nn.GroupNorm(channels // size, channels)
