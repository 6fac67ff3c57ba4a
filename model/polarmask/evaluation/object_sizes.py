"""Sizes of objects for histograms: square roots of areas."""

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite

SIDE_EDGES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, float("inf"))
"""Between the bins: square root of an object's area in pixels."""


def range_labels(edges: Sequence[float]) -> list[str]:
    """Return a name for each bin between two edges, such as "8-16" or "512+"."""
    return [f"{low:g}-{high:g}" if isfinite(high) else f"{low:g}+" for low, high in pairwise(edges)]
