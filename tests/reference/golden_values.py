"""Parameter values that the golden forward passes were made with: a formula, no generator."""

import math
import zlib

import numpy as np


def golden_value(name, shape):
    """Return the float32 array (shape) that stands for a parameter of the original's network."""
    size = math.prod(shape)
    seed = zlib.crc32(name.encode()) * 2654435761 % 2**32
    mixed = (np.arange(size, dtype=np.uint64) + np.uint64(seed)).astype(np.uint32)
    for _ in range(2):
        mixed = ((mixed >> np.uint32(16)) ^ mixed) * np.uint32(0x45D9F3B)
    mixed = (mixed >> np.uint32(16)) ^ mixed
    uniform = (mixed / 2**31 - 1).reshape(shape)
    leaf = name.rsplit(".", 1)[1]
    if leaf in ("running_mean", "bias"):
        return np.float32(0.1 * uniform)
    if leaf in ("running_var", "scale") or (leaf == "weight" and len(shape) == 1):
        return np.float32(1 + 0.2 * uniform)
    is_small = "offset" in name or "_reg" in name or ("_mask." in name and "convs" not in name)
    fan_in = math.prod(shape[1:])
    return np.float32(uniform * math.sqrt(3 / fan_in) * (0.3 if is_small else 1.0))
