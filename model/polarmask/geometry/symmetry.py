"""Mirrors and quarter turns that keep image, locations and rays in step, exactly.

The canvas is a whole number of locations wide and high and rays are evenly spaced, so each of the
eight symmetries of the square maps locations onto locations and rays onto rays: labels made once
fit them all (ADR 0008).
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Cell = TypeVar("Cell", np.int64, np.float64)


@dataclass(frozen=True)
class Symmetry:
    """Transpose first, then mirror."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False


def draw_symmetry(kind: Literal["off", "flip", "dihedral"], rng: np.random.Generator) -> Symmetry:
    """Draw uniformly from the symmetries that a data set allows."""
    if kind == "off":
        return Symmetry()
    if kind == "flip":
        return Symmetry(flip_x=bool(rng.integers(2)))
    return Symmetry(*(bool(bit) for bit in rng.integers(2, size=3)))


def apply_to_image(image: NDArray[np.uint8], symmetry: Symmetry) -> NDArray[np.uint8]:
    """Transform an (H, W, 3) canvas."""
    if symmetry.transpose:
        image = image.transpose(1, 0, 2)
    if symmetry.flip_x:
        image = image[:, ::-1]
    if symmetry.flip_y:
        image = image[::-1]
    return np.ascontiguousarray(image)


def ray_order(num_rays: int, symmetry: Symmetry) -> NDArray[np.int64]:
    """Return for each new ray the old ray that it takes its length from."""
    old = np.arange(num_rays)
    if symmetry.flip_y:  # undo the last step first: new angle a comes from -a
        old = -old
    if symmetry.flip_x:
        old = num_rays // 2 - old
    if symmetry.transpose:
        old = num_rays // 4 - old
    return old % num_rays


def apply_to_pixels(
    pixel_K2: NDArray[Cell], hw: tuple[int, int] | NDArray[np.int64], symmetry: Symmetry
) -> NDArray[Cell]:
    """Transform (x, y) of pixels, or of cells, counted from 0 at the top left.

    Args:
        pixel_K2: Before.
        hw: Rows and columns of the grid afterwards; (K, 2) where each has its own.
        symmetry: What is done to the grid.
    """
    last_yx = np.asarray(hw) - 1
    x_K, y_K = pixel_K2.T
    if symmetry.transpose:
        x_K, y_K = y_K, x_K
    if symmetry.flip_x:
        x_K = last_yx[..., 1] - x_K
    if symmetry.flip_y:
        y_K = last_yx[..., 0] - y_K
    return np.stack([x_K, y_K], axis=1)
