"""Locations of the network: as level, row and column, in pixels, and counted through.

A location is a cell of a pyramid level. On a level of stride s, the cell in row i and column j sits
at x = (j + 0.5) * s, y = (i + 0.5) * s, in pixels of the network's input.

Dimension key
    I: images    G: objects of all images    K: (object, location) pairs    L: all locations
    P: positive locations    R: rays    2: (x, y) in pixels    4: x0, y0, x1, y1 in pixels
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Assignment:
    """Positive locations of one image or of a batch.

    Attributes:
        location_P3: Level, row and column, int64.
        object_P: Index of the object that the location learns, int64.
        ray_PR: Ray lengths in pixels, > 0.
    """

    location_P3: Tensor
    object_P: Tensor
    ray_PR: Tensor


def level_points(location_K3: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return the pixel coordinates (K, 2) of locations given as level, row, column."""
    stride_K1 = torch.tensor(strides, device=location_K3.device)[location_K3[:, :1]]
    return (location_K3[:, [2, 1]] + 0.5) * stride_K1


def all_locations(canvas_hw: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    """Return level, row, column (L, 3) of every location, finest level first, row by row."""
    levels = [
        torch.cartesian_prod(
            torch.tensor([level]),
            torch.arange(canvas_hw[0] // stride),
            torch.arange(canvas_hw[1] // stride),
        )
        for level, stride in enumerate(strides)
    ]
    return torch.cat(levels)


def all_points(
    level_hws: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return the pixel coordinates (L, 2) of all locations, finest level first, row by row."""
    points = []
    for (rows, columns), stride in zip(level_hws, strides, strict=True):
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 2))
    return torch.cat(points)


@dataclass(frozen=True, eq=False)
class Grid:
    """All locations of all images, numbered by image, level, row and column."""

    strides: tuple[int, ...]
    hw_IL2: Tensor
    """Rows and columns of each image's levels."""
    first_IL: Tensor
    """Number of the first location of each image's levels."""
    total: int

    @classmethod
    def of(cls, canvas_I2: Tensor, strides: tuple[int, ...]) -> "Grid":
        """Count the locations of images whose padded inputs have these rows and columns."""
        stride_L1 = torch.tensor(strides, device=canvas_I2.device)[:, None]
        hw_IL2 = canvas_I2[:, None] // stride_L1
        count_IL = hw_IL2.prod(dim=2)
        first_IL = (count_IL.flatten().cumsum(0) - count_IL.flatten()).reshape(count_IL.shape)
        return cls(strides, hw_IL2, first_IL, int(count_IL.sum()))

    def number(self, location_K3: Tensor, image_K: Tensor) -> Tensor:
        """Return each location's number, counted through all images."""
        level_K, row_K, column_K = location_K3.unbind(dim=1)
        columns_K = self.hw_IL2[image_K, level_K, 1]
        return self.first_IL[image_K, level_K] + row_K * columns_K + column_K


def near_centers(
    center_G2: Tensor, canvas_G2: Tensor, strides: tuple[int, ...], radius: float
) -> tuple[Tensor, Tensor]:
    """Return the locations (K, 3) strictly within `radius` strides of a centre, at every level.

    Args:
        center_G2: Centres of objects.
        canvas_G2: Rows and columns of the padded input that each object lies on.
        strides: Of the levels.
        radius: Half the side of the square around a centre, in strides.

    Returns:
        Locations on the canvas, and the object (K,) of each.
    """
    reach = int(radius) + 1
    offset = torch.arange(-reach, reach + 1, device=center_G2.device)
    step_N2 = torch.cartesian_prod(offset, offset)
    yx_G2 = center_G2[:, [1, 0]].double()
    locations, owners = [], []
    for level, stride in enumerate(strides):
        cell_GN2 = (yx_G2 / stride).floor().long()[:, None] + step_N2
        distance_GN2 = (cell_GN2.double() + 0.5) * stride - yx_G2[:, None]
        keep_GN = (
            (distance_GN2.abs().amax(dim=2) < radius * stride)
            & (cell_GN2 >= 0).all(dim=2)
            & (cell_GN2 < (canvas_G2 // stride)[:, None]).all(dim=2)
        )
        owner_K, nth_K = keep_GN.nonzero(as_tuple=True)
        cell_K2 = cell_GN2[owner_K, nth_K]
        locations.append(torch.cat([torch.full_like(cell_K2[:, :1], level), cell_K2], dim=1))
        owners.append(owner_K)
    return torch.cat(locations), torch.cat(owners)


def in_level_range(
    location_K3: Tensor,
    box_K4: Tensor,
    strides: tuple[int, ...],
    ranges: tuple[tuple[float, float], ...],
) -> Tensor:
    """Return which locations lie in their object's box, its farthest side in the level's range."""
    point_K2 = level_points(location_K3, strides)
    side_K4 = torch.cat([point_K2 - box_K4[:, :2], box_K4[:, 2:] - point_K2], dim=1)
    farthest_K = side_K4.amax(dim=1)
    range_K2 = torch.tensor(ranges, device=box_K4.device)[location_K3[:, 0]]
    return (
        (side_K4.amin(dim=1) > 0) & (farthest_K >= range_K2[:, 0]) & (farthest_K <= range_K2[:, 1])
    )


def smallest_wins(number_K: Tensor, object_K: Tensor, area_G: Tensor) -> Tensor:
    """Give each location to the object with the smallest area; the first of equals.

    Returns:
        Indices of the pairs that win, ordered by object, then by location.
    """
    order_K = area_G[object_K].argsort(stable=True)
    order_K = order_K[number_K[order_K].argsort(stable=True)]
    sorted_number_K = number_K[order_K]
    first_K = torch.ones_like(sorted_number_K, dtype=torch.bool)
    first_K[1:] = sorted_number_K[1:] != sorted_number_K[:-1]
    winner_P = order_K[first_K]
    return winner_P[object_K[winner_P].argsort(stable=True)]
