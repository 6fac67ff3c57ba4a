"""Which location learns which object, and the ray lengths it learns.

`assign_batch` does whole batches of images in torch, on any device and without a loop over
objects; `native_targets` does the same for one image at a time on one CPU core, faster there.
Both compute in float64 what decides, and agree.

Dimension key
    I: images    G: objects of all images    K: candidate (object, location) pairs
    P: positive locations    R: rays    C: locations that an object may get in need
    2: (x, y) in pixels of the network's input    4: x0, y0, x1, y1
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.geometry.rays import Polygons, cast_rays
from polarmask.original.rays import binned_rays


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


def assign_batch(
    polygons: Polygons,
    image_G: Tensor,
    canvas_I2: Tensor,
    *,
    model: ModelConfig,
    labels: LabelConfig,
) -> Assignment:
    """Choose positives by the rules of FCOS, around the mass centre and inside the object.

    A location is positive for an object when it lies within `center_radius` strides of the mass
    centre, inside the polygon, and its farthest box side is in the level's range. The smallest box
    wins a location that several objects want. An object left without any gets the free location
    inside it that is nearest to its mass centre, or the nearest free one if none is inside.

    Args:
        polygons: Objects of all images, in pixels of the network's input, float32.
        image_G: Image of each object.
        canvas_I2: Rows and columns of each image's padded input, int64, multiples of the coarsest
            stride.
        model: Strides and ray count.
        labels: Radius and level ranges.

    Returns:
        The assignment, ordered by object, then by level, row and column. `object_P` counts through
        all images.
    """
    if not len(image_G):
        nothing = torch.zeros(0, dtype=torch.long, device=image_G.device)
        rays = torch.zeros(0, model.num_rays, device=image_G.device)
        return Assignment(nothing.reshape(0, 3), nothing, rays)
    grid = _Grid.of(canvas_I2, model.strides)
    _, center_G2 = polygons.area_and_centroid()
    box_G4 = polygons.boxes().double()
    location_K3, object_K = _near_centers(
        center_G2, canvas_I2[image_G], model.strides, labels.center_radius
    )
    in_range_K = _in_level_range(location_K3, box_G4[object_K], model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[in_range_K], object_K[in_range_K]
    inside_K = _is_inside(location_K3, object_K, polygons, model.strides)
    location_K3, object_K = location_K3[inside_K], object_K[inside_K]
    area_G = (box_G4[:, 2] - box_G4[:, 0]) * (box_G4[:, 3] - box_G4[:, 1])
    place_K = grid.place(location_K3, image_G[object_K])
    won_K = _smallest_wins(place_K, object_K, area_G)
    location_P3, object_P = _rescue(
        location_K3[won_K], object_K[won_K], polygons, image_G, center_G2, box_G4, grid, labels
    )
    ray_PR, _ = cast_rays(
        level_points(location_P3, model.strides), object_P, polygons, model.num_rays
    )
    return Assignment(location_P3, object_P, ray_PR)


def assign_original(
    contours: list[Tensor],
    center_G2: Tensor,
    box_G4: Tensor,
    canvas_hw: tuple[int, int],
    *,
    model: ModelConfig,
    labels: LabelConfig,
) -> Assignment:
    """Choose positives as the original does: inside or outside the object, and maybe none.

    Args:
        contours: One (V, 2) tensor of contour pixels per object.
        center_G2: Mass centres in whole pixels, float.
        box_G4: Boxes that end on their last pixel: one less wide and high than ours.
        canvas_hw: Rows and columns of the padded input, multiples of the coarsest stride.
        model: Strides and ray count.
        labels: Radius and level ranges.

    Returns:
        The assignment, ordered by object. It is empty if the first object's mass centre has x 0:
        the original takes that for an image without objects.
    """
    if not contours or center_G2[0, 0] == 0:
        nothing = torch.zeros(0, dtype=torch.long)
        return Assignment(nothing.reshape(0, 3), nothing, torch.zeros(0, model.num_rays))
    canvas_I2 = torch.tensor([canvas_hw])
    location_K3, object_K = _near_centers(
        center_G2, canvas_I2.expand(len(center_G2), 2), model.strides, labels.center_radius
    )
    in_range_K = _in_level_range(location_K3, box_G4[object_K], model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[in_range_K], object_K[in_range_K]
    area_G = (box_G4[:, 2] - box_G4[:, 0] + 1) * (box_G4[:, 3] - box_G4[:, 1] + 1)
    place_K = _Grid.of(canvas_I2, model.strides).place(location_K3, torch.zeros_like(object_K))
    won_P = _smallest_wins(place_K, object_K, area_G)
    location_P3, object_P = location_K3[won_P], object_K[won_P]
    point_P2 = level_points(location_P3, model.strides)
    return Assignment(
        location_P3, object_P, binned_rays(point_P2, object_P, contours, model.num_rays)
    )


@dataclass(frozen=True, eq=False)
class _Grid:
    """All locations of all images counted through: image, level, row, column."""

    strides: tuple[int, ...]
    hw_IL2: Tensor
    """Rows and columns of each image's levels."""
    first_IL: Tensor
    """Number of the first location of each image's levels."""
    total: int

    @classmethod
    def of(cls, canvas_I2: Tensor, strides: tuple[int, ...]) -> "_Grid":
        stride_L1 = torch.tensor(strides, device=canvas_I2.device)[:, None]
        hw_IL2 = canvas_I2[:, None] // stride_L1
        count_IL = hw_IL2.prod(dim=2)
        first_IL = (count_IL.flatten().cumsum(0) - count_IL.flatten()).reshape(count_IL.shape)
        return cls(strides, hw_IL2, first_IL, int(count_IL.sum()))

    def place(self, location_K3: Tensor, image_K: Tensor) -> Tensor:
        level_K, row_K, column_K = location_K3.unbind(dim=1)
        columns_K = self.hw_IL2[image_K, level_K, 1]
        return self.first_IL[image_K, level_K] + row_K * columns_K + column_K


def _near_centers(
    center_G2: Tensor, canvas_G2: Tensor, strides: tuple[int, ...], radius: float
) -> tuple[Tensor, Tensor]:
    """Return all on-canvas locations strictly within the sampling square of every level."""
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


def _in_level_range(
    location_K3: Tensor,
    box_K4: Tensor,
    strides: tuple[int, ...],
    ranges: tuple[tuple[float, float], ...],
) -> Tensor:
    point_K2 = level_points(location_K3, strides)
    side_K4 = torch.cat([point_K2 - box_K4[:, :2], box_K4[:, 2:] - point_K2], dim=1)
    farthest_K = side_K4.amax(dim=1)
    range_K2 = torch.tensor(ranges, device=box_K4.device)[location_K3[:, 0]]
    return (
        (side_K4.amin(dim=1) > 0) & (farthest_K >= range_K2[:, 0]) & (farthest_K <= range_K2[:, 1])
    )


def _is_inside(
    location_K3: Tensor, object_K: Tensor, polygons: Polygons, strides: tuple[int, ...]
) -> Tensor:
    return cast_rays(level_points(location_K3, strides), object_K, polygons, 1)[1]


def _smallest_wins(place_K: Tensor, object_K: Tensor, area_G: Tensor) -> Tensor:
    """Return the pair indices that win their place, ordered by object, then by place."""
    order_K = area_G[object_K].argsort(stable=True)
    order_K = order_K[place_K[order_K].argsort(stable=True)]
    sorted_place_K = place_K[order_K]
    first_K = torch.ones_like(sorted_place_K, dtype=torch.bool)
    first_K[1:] = sorted_place_K[1:] != sorted_place_K[:-1]
    winner_P = order_K[first_K]
    return winner_P[object_K[winner_P].argsort(stable=True)]


def _rescue(
    location_P3: Tensor,
    object_P: Tensor,
    polygons: Polygons,
    image_G: Tensor,
    center_G2: Tensor,
    box_G4: Tensor,
    grid: _Grid,
    labels: LabelConfig,
) -> tuple[Tensor, Tensor]:
    """Give every object without a positive one location, if any is free; the first object first.

    All choose at once, a place keeps the first object that wants it, the others choose again: the
    outcome is that of choosing one after the other, because all places prefer the same order.
    """
    is_lost_G = torch.ones_like(image_G, dtype=torch.bool)
    is_lost_G[object_P] = False
    lost_G = is_lost_G.nonzero().flatten()
    if not len(lost_G):
        return location_P3, object_P
    location_C3, object_C, order_C = _candidates(lost_G, image_G, center_G2, box_G4, grid, labels)
    place_C = grid.place(location_C3, image_G[object_C])
    free = torch.ones(grid.total, dtype=torch.bool, device=image_G.device)
    free[grid.place(location_P3, image_G[object_P])] = False
    location_C3, object_C, order_C = (
        value[free[place_C]] for value in (location_C3, object_C, order_C)
    )
    inside_C = _is_inside(location_C3, object_C, polygons, grid.strides)
    offset_C2 = level_points(location_C3, grid.strides).double() - center_G2[object_C]
    distance_C = offset_C2[:, 0] * offset_C2[:, 0] + offset_C2[:, 1] * offset_C2[:, 1]
    # Inside: the object's own level first, then by distance there (around the centre: as listed).
    # Outside: by distance alone. Stable sorts, last key first, keep the listed order of equals.
    around_C = order_C == len(grid.strides)
    wish_C = torch.where(inside_C & around_C, 0.0, distance_C).argsort(stable=True)
    for key_C in (torch.where(inside_C, order_C, 0), ~inside_C, object_C):
        wish_C = wish_C[key_C[wish_C].long().argsort(stable=True)]
    location_C3, object_C = location_C3[wish_C], object_C[wish_C]
    chosen = _choose(grid.place(location_C3, image_G[object_C]), object_C, len(image_G), grid.total)
    location_P3 = torch.cat([location_P3, location_C3[chosen]])
    object_P = torch.cat([object_P, object_C[chosen]])
    order_P = object_P.argsort(stable=True)
    return location_P3[order_P], object_P[order_P]


def _choose(place_C: Tensor, object_C: Tensor, num_objects: int, num_places: int) -> Tensor:
    """Return one row per object from their wishes, sorted by object, best first; no place twice."""
    count_G = torch.bincount(object_C, minlength=num_objects)
    end_G = count_G.cumsum(0)
    next_G = end_G - count_G
    holder = torch.full((num_places,), num_objects, device=place_C.device)
    while True:
        asking = (next_G < end_G).nonzero().flatten()
        place = place_C[next_G[asking]]
        holder.scatter_reduce_(0, place, asking, "amin")
        refused = asking[holder[place] != asking]
        if not len(refused):
            return next_G[asking]
        next_G[refused] += 1


def _candidates(
    lost_G: Tensor,
    image_G: Tensor,
    center_G2: Tensor,
    box_G4: Tensor,
    grid: _Grid,
    labels: LabelConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """List locations in lost objects' boxes from their own level down to the finest.

    The last ones are those of the finest level around the centre, box or no box.

    Returns:
        Locations (C, 3), the object of each, and which levels to prefer: lower first, the number
        of levels for those around the centre.
    """
    box_C4, image_C = box_G4[lost_G], image_G[lost_G]
    half_side = (box_C4[:, 2:] - box_C4[:, :2]).amax(dim=1) / 2
    high_L = torch.tensor([high for _, high in labels.level_ranges], device=box_G4.device)
    own = (half_side[:, None] > high_L).sum(dim=1)
    found = []
    for level in range(len(grid.strides) - 1, -1, -1):
        stride = grid.strides[level]
        first_2 = (box_C4[:, [1, 0]] / stride - 0.5).ceil().long().clamp(min=0)
        last_2 = (box_C4[:, [3, 2]] / stride - 0.5).floor().long()
        last_2 = last_2.minimum(grid.hw_IL2[image_C, level] - 1)
        size_2 = (last_2 - first_2 + 1).clamp(min=0) * (own >= level)[:, None]
        count = size_2.prod(dim=1)
        row_C = torch.repeat_interleave(count)
        nth_C = torch.arange(len(row_C), device=row_C.device) - (count.cumsum(0) - count)[row_C]
        columns_C = size_2[row_C, 1]
        cell_C2 = torch.stack([nth_C // columns_C, nth_C % columns_C], dim=1) + first_2[row_C]
        location_C3 = torch.cat([torch.full_like(cell_C2[:, :1], level), cell_C2], dim=1)
        found.append((location_C3, lost_G[row_C], own[row_C] - level))
    offset = torch.arange(-2, 3, device=box_G4.device)
    middle_2 = (center_G2[lost_G][:, [1, 0]].double() / grid.strides[0]).floor().long()
    cell_N2 = middle_2[:, None] + torch.cartesian_prod(offset, offset)
    cell_N2 = cell_N2.clamp(min=0).minimum(grid.hw_IL2[image_C, 0][:, None] - 1)
    around_C2 = cell_N2.reshape(-1, 2)
    location_C3 = torch.cat([torch.zeros_like(around_C2[:, :1]), around_C2], dim=1)
    owner_C = lost_G.repeat_interleave(len(offset) ** 2)
    found.append((location_C3, owner_C, torch.full_like(owner_C, len(grid.strides))))
    locations, owners, orders = zip(*found, strict=True)
    return torch.cat(locations), torch.cat(owners), torch.cat(orders)
