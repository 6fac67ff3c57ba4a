"""Which location learns which object, and the ray lengths it learns: the rules, in torch.

`assign_batch` takes whole batches of images on any device, without a loop over objects.
`compiled_targets` does the same for one image on one CPU core, faster there. Both compute in
float64 what decides, and agree.

Dimension key
    I: images    G: objects of all images    K: candidate (object, location) pairs
    P: positive locations    R: rays    C: pairs of an object without a location and a place for it
    2: (x, y) in pixels of the network's input    4: x0, y0, x1, y1
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.geometry.locations import (
    Assignment,
    Grid,
    in_level_range,
    level_points,
    near_centers,
    smallest_wins,
)
from polarmask.geometry.rays import Polygons, cast_rays

CELLS_AROUND = 2
"""Cells of the finest level, each way, around the centre of an object without a location inside."""


@dataclass(frozen=True, eq=False)
class _Objects:
    """The objects of all images."""

    polygons: Polygons
    image_G: Tensor
    center_G2: Tensor
    box_G4: Tensor

    @classmethod
    def of(cls, polygons: Polygons, image_G: Tensor) -> "_Objects":
        _, center_G2 = polygons.area_and_centroid()
        return cls(polygons, image_G, center_G2, polygons.boxes().double())

    def contain(self, location_K3: Tensor, object_K: Tensor, strides: tuple[int, ...]) -> Tensor:
        """Return which locations lie inside their object."""
        return cast_rays(level_points(location_K3, strides), object_K, self.polygons, 1)[1]


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
    grid = Grid.of(canvas_I2, model.strides)
    objects = _Objects.of(polygons, image_G)
    location_K3, object_K = _candidates(objects, canvas_I2, model, labels)
    width_G, height_G = (objects.box_G4[:, 2:] - objects.box_G4[:, :2]).T
    number_K = grid.number(location_K3, image_G[object_K])
    won_P = smallest_wins(number_K, object_K, width_G * height_G)
    location_P3, object_P = _rescue(location_K3[won_P], object_K[won_P], objects, grid, labels)
    point_P2 = level_points(location_P3, model.strides)
    ray_PR, _ = cast_rays(point_P2, object_P, polygons, model.num_rays)
    return Assignment(location_P3, object_P, ray_PR)


def _candidates(
    objects: _Objects, canvas_I2: Tensor, model: ModelConfig, labels: LabelConfig
) -> tuple[Tensor, Tensor]:
    """Return the locations that objects want: near the centre, of the right level, inside."""
    location_K3, object_K = near_centers(
        objects.center_G2, canvas_I2[objects.image_G], model.strides, labels.center_radius
    )
    box_K4 = objects.box_G4[object_K]
    fits_K = in_level_range(location_K3, box_K4, model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[fits_K], object_K[fits_K]
    inside_K = objects.contain(location_K3, object_K, model.strides)
    return location_K3[inside_K], object_K[inside_K]


def _rescue(
    location_P3: Tensor, object_P: Tensor, objects: _Objects, grid: Grid, labels: LabelConfig
) -> tuple[Tensor, Tensor]:
    """Give every object without a positive one location, if any is free; the first object first.

    All objects choose at once, each location keeps the first of the objects that chose it, and the
    others choose again. The result is that of choosing one after the other, because every location
    prefers objects in the same order.
    """
    is_lost_G = torch.ones_like(objects.image_G, dtype=torch.bool)
    is_lost_G[object_P] = False
    lost_G = is_lost_G.nonzero().flatten()
    if not len(lost_G):
        return location_P3, object_P
    is_free = torch.ones(grid.total, dtype=torch.bool, device=lost_G.device)
    is_free[grid.number(location_P3, objects.image_G[object_P])] = False
    location_C3, object_C = _wishes(lost_G, is_free, objects, grid, labels)
    number_C = grid.number(location_C3, objects.image_G[object_C])
    chosen = _choose(number_C, object_C, len(objects.image_G), grid.total)
    location_P3 = torch.cat([location_P3, location_C3[chosen]])
    object_P = torch.cat([object_P, object_C[chosen]])
    order_P = object_P.argsort(stable=True)
    return location_P3[order_P], object_P[order_P]


def _wishes(
    lost_G: Tensor, is_free: Tensor, objects: _Objects, grid: Grid, labels: LabelConfig
) -> tuple[Tensor, Tensor]:
    """Return free locations (C, 3) for objects without one, and the object of each, best first.

    Best are those inside the object: of its own level first, then of the next finer one, and so
    on, by distance to the centre. Outside, distance alone counts. Equals keep the order in which
    they are listed.
    """
    location_C3, object_C, level_order_C = _listed(lost_G, objects, grid, labels)
    free_C = is_free[grid.number(location_C3, objects.image_G[object_C])]
    location_C3, object_C, level_order_C = (
        each[free_C] for each in (location_C3, object_C, level_order_C)
    )
    inside_C = objects.contain(location_C3, object_C, grid.strides)
    offset_C2 = level_points(location_C3, grid.strides).double() - objects.center_G2[object_C]
    distance_C = offset_C2[:, 0] * offset_C2[:, 0] + offset_C2[:, 1] * offset_C2[:, 1]
    order_C = _sorted_by(
        object_C,
        (~inside_C).long(),
        torch.where(inside_C, level_order_C, 0),
        distance_C,
    )
    return location_C3[order_C], object_C[order_C]


def _sorted_by(*keys_C: Tensor) -> Tensor:
    """Return the order by the first key, among equals by the second, and so on; stable."""
    order_C = keys_C[-1].argsort(stable=True)
    for key_C in reversed(keys_C[:-1]):
        order_C = order_C[key_C[order_C].argsort(stable=True)]
    return order_C


def _listed(
    lost_G: Tensor, objects: _Objects, grid: Grid, labels: LabelConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """List the locations in lost objects' boxes, and those around their centres.

    Returns:
        Locations (C, 3), the object of each, and by how many levels it is finer than the object's
        own level; the number of levels for those around the centre.
    """
    half_side = (objects.box_G4[lost_G, 2:] - objects.box_G4[lost_G, :2]).amax(dim=1) / 2
    high_L = torch.tensor([high for _, high in labels.level_ranges], device=lost_G.device)
    own_level = (half_side[:, None] > high_L).sum(dim=1)
    found = []
    for level in range(len(grid.strides) - 1, -1, -1):
        has = own_level >= level
        location_C3, row_C = _cells_in_boxes(level, lost_G[has], objects, grid)
        found.append((location_C3, lost_G[has][row_C], own_level[has][row_C] - level))
    location_C3, row_C = _cells_around_centers(lost_G, objects, grid)
    found.append((location_C3, lost_G[row_C], torch.full_like(row_C, len(grid.strides))))
    locations, owners, orders = zip(*found, strict=True)
    return torch.cat(locations), torch.cat(owners), torch.cat(orders)


def _cells_in_boxes(
    level: int, lost_G: Tensor, objects: _Objects, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Return a level's locations (C, 3) in objects' boxes, and the row of each in `lost_G`."""
    box_G4, last_cell_G2 = objects.box_G4[lost_G], grid.hw_IL2[objects.image_G[lost_G], level] - 1
    stride = grid.strides[level]
    first_G2 = (box_G4[:, [1, 0]] / stride - 0.5).ceil().long().clamp(min=0)
    last_G2 = (box_G4[:, [3, 2]] / stride - 0.5).floor().long().minimum(last_cell_G2)
    size_G2 = (last_G2 - first_G2 + 1).clamp(min=0)
    count_G = size_G2.prod(dim=1)
    row_C = torch.repeat_interleave(count_G)
    nth_C = torch.arange(len(row_C), device=row_C.device) - (count_G.cumsum(0) - count_G)[row_C]
    columns_C = size_G2[row_C, 1]
    cell_C2 = torch.stack([nth_C // columns_C, nth_C % columns_C], dim=1) + first_G2[row_C]
    return torch.cat([torch.full_like(cell_C2[:, :1], level), cell_C2], dim=1), row_C


def _cells_around_centers(lost_G: Tensor, objects: _Objects, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return locations (C, 3) of the finest level, as `_cells_in_boxes`; on the canvas."""
    last_cell_G2 = grid.hw_IL2[objects.image_G[lost_G], 0] - 1
    offset = torch.arange(-CELLS_AROUND, CELLS_AROUND + 1, device=lost_G.device)
    step_N2 = torch.cartesian_prod(offset, offset)
    middle_G2 = (objects.center_G2[lost_G][:, [1, 0]].double() / grid.strides[0]).floor().long()
    cell_GN2 = (middle_G2[:, None] + step_N2).clamp(min=0).minimum(last_cell_G2[:, None])
    cell_C2 = cell_GN2.reshape(-1, 2)
    row_C = torch.arange(len(lost_G), device=lost_G.device).repeat_interleave(len(step_N2))
    return torch.cat([torch.zeros_like(cell_C2[:, :1]), cell_C2], dim=1), row_C


def _choose(number_C: Tensor, object_C: Tensor, num_objects: int, num_locations: int) -> Tensor:
    """Return one row per object, none with the same location; rows come by object, best first."""
    count_G = torch.bincount(object_C, minlength=num_objects)
    end_G = count_G.cumsum(0)
    next_G = end_G - count_G
    holder = torch.full((num_locations,), num_objects, device=number_C.device)
    while True:
        asking = (next_G < end_G).nonzero().flatten()
        place = number_C[next_G[asking]]
        holder.scatter_reduce_(0, place, asking, "amin")
        refused = asking[holder[place] != asking]
        if not len(refused):
            return next_G[asking]
        next_G[refused] += 1
