"""Which location learns which object, and the ray lengths it learns.

Dimension key
    G: objects of one image    K: candidate (object, location) pairs    P: positive locations
    R: rays    2: (x, y) in pixels of the network's input    4: x0, y0, x1, y1
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polarmask.config import LabelConfig, ModelConfig
from polarmask.original_rays import binned_rays
from polarmask.rays import Polygons, cast_rays


@dataclass(frozen=True, eq=False)
class Assignment:
    """Positive locations of one image.

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


def assign(
    vertices: list[Tensor],
    canvas_hw: tuple[int, int],
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
        vertices: One (V, 2) float tensor per object, in pixels of the network's input.
        canvas_hw: Rows and columns of the padded input, multiples of the coarsest stride.
        model: Strides and ray count.
        labels: Radius and level ranges.

    Returns:
        The assignment, ordered by object.
    """
    if not vertices:
        empty = torch.zeros(0, dtype=torch.long)
        return Assignment(
            torch.zeros(0, 3, dtype=torch.long), empty, torch.zeros(0, model.num_rays)
        )
    polygons = Polygons.from_vertices(vertices)
    _, center_G2 = polygons.area_and_centroid()
    box_G4 = torch.stack([torch.cat([v.amin(dim=0), v.amax(dim=0)]) for v in vertices])
    location_K3, object_K = _near_centers(center_G2, canvas_hw, model.strides, labels.center_radius)
    in_range_K = _in_level_range(location_K3, box_G4[object_K], model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[in_range_K], object_K[in_range_K]
    point_K2 = level_points(location_K3, model.strides)
    ray_KR, inside_K = cast_rays(point_K2, object_K, polygons, model.num_rays)
    location_K3, object_K, ray_KR = location_K3[inside_K], object_K[inside_K], ray_KR[inside_K]
    area_G = (box_G4[:, 2] - box_G4[:, 0]) * (box_G4[:, 3] - box_G4[:, 1])
    won_K = _smallest_wins(location_K3, object_K, area_G)
    chosen = Assignment(location_K3[won_K], object_K[won_K], ray_KR[won_K])
    return _rescue(chosen, polygons, center_G2, box_G4, canvas_hw, model, labels)


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
        return assign([], canvas_hw, model=model, labels=labels)
    location_K3, object_K = _near_centers(center_G2, canvas_hw, model.strides, labels.center_radius)
    in_range_K = _in_level_range(location_K3, box_G4[object_K], model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[in_range_K], object_K[in_range_K]
    area_G = (box_G4[:, 2] - box_G4[:, 0] + 1) * (box_G4[:, 3] - box_G4[:, 1] + 1)
    won_P = _smallest_wins(location_K3, object_K, area_G)
    location_P3, object_P = location_K3[won_P], object_K[won_P]
    point_P2 = level_points(location_P3, model.strides)
    return Assignment(
        location_P3, object_P, binned_rays(point_P2, object_P, contours, model.num_rays)
    )


def _near_centers(
    center_G2: Tensor, canvas_hw: tuple[int, int], strides: tuple[int, ...], radius: float
) -> tuple[Tensor, Tensor]:
    """Return all on-canvas locations strictly within the sampling square of every level."""
    reach = int(radius) + 1
    offset = torch.arange(-reach, reach + 1)
    step_N2 = torch.cartesian_prod(offset, offset)
    locations, owners = [], []
    for level, stride in enumerate(strides):
        middle_G2 = (center_G2[:, [1, 0]] / stride).floor().long()
        cell_GN2 = middle_G2[:, None] + step_N2
        distance_GN2 = (cell_GN2 + 0.5) * stride - center_G2[:, None, [1, 0]]
        rows, columns = canvas_hw[0] // stride, canvas_hw[1] // stride
        keep_GN = (
            (distance_GN2.abs().amax(dim=2) < radius * stride)
            & (cell_GN2 >= 0).all(dim=2)
            & (cell_GN2[..., 0] < rows)
            & (cell_GN2[..., 1] < columns)
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
    range_K2 = torch.tensor(ranges)[location_K3[:, 0]]
    return (
        (side_K4.amin(dim=1) > 0) & (farthest_K >= range_K2[:, 0]) & (farthest_K <= range_K2[:, 1])
    )


def _smallest_wins(location_K3: Tensor, object_K: Tensor, area_G: Tensor) -> Tensor:
    """Return the pair indices that win their location, ordered by object."""
    _, place_K = location_K3.unique(dim=0, return_inverse=True)
    order_K = area_G[object_K].argsort(stable=True)
    order_K = order_K[place_K[order_K].argsort(stable=True)]
    sorted_place_K = place_K[order_K]
    first_K = torch.ones_like(sorted_place_K, dtype=torch.bool)
    first_K[1:] = sorted_place_K[1:] != sorted_place_K[:-1]
    winner_P = order_K[first_K]
    return winner_P[object_K[winner_P].argsort(stable=True)]


def _rescue(
    chosen: Assignment,
    polygons: Polygons,
    center_G2: Tensor,
    box_G4: Tensor,
    canvas_hw: tuple[int, int],
    model: ModelConfig,
    labels: LabelConfig,
) -> Assignment:
    """Give every object without a positive one location, if any is free."""
    has_positive_G = torch.zeros(len(center_G2), dtype=torch.bool)
    has_positive_G[chosen.object_P] = True
    taken = {tuple(location) for location in chosen.location_P3.tolist()}
    locations, rays, owners = [chosen.location_P3], [chosen.ray_PR], [chosen.object_P]
    for lost in (~has_positive_G).nonzero().flatten().tolist():
        candidate_K3 = _candidates(box_G4[lost], center_G2[lost], canvas_hw, model.strides, labels)
        free_K = [tuple(location) not in taken for location in candidate_K3.tolist()]
        candidate_K3 = candidate_K3[torch.tensor(free_K, dtype=torch.bool)]
        if not len(candidate_K3):
            continue
        point_K2 = level_points(candidate_K3, model.strides)
        owner_K = torch.full((len(candidate_K3),), lost)
        ray_KR, inside_K = cast_rays(point_K2, owner_K, polygons, model.num_rays)
        distance_K = (point_K2 - center_G2[lost]).norm(dim=1)
        best = int(inside_K.int().argmax() if inside_K.any() else distance_K.argmin())
        locations.append(candidate_K3[best : best + 1])
        rays.append(ray_KR[best : best + 1])
        owners.append(owner_K[:1])
        taken.add(tuple(candidate_K3[best].tolist()))
    object_P = torch.cat(owners)
    order_P = object_P.argsort(stable=True)
    return Assignment(torch.cat(locations)[order_P], object_P[order_P], torch.cat(rays)[order_P])


def _candidates(
    box_4: Tensor,
    center_2: Tensor,
    canvas_hw: tuple[int, int],
    strides: tuple[int, ...],
    labels: LabelConfig,
) -> Tensor:
    """List locations in an object's box, its own level first, nearest to its centre first.

    The last ones are those of the finest level around the centre, box or no box.
    """
    half_side = float((box_4[2:] - box_4[:2]).max()) / 2
    own = next(i for i, (_, high) in enumerate(labels.level_ranges) if half_side <= high)
    found = []
    for level in range(own, -1, -1):
        stride = strides[level]
        first = (box_4[[1, 0]] / stride - 0.5).ceil().long().clamp(min=0).tolist()
        last = (box_4[[3, 2]] / stride - 0.5).floor().long().tolist()
        rows = torch.arange(first[0], min(last[0], canvas_hw[0] // stride - 1) + 1)
        columns = torch.arange(first[1], min(last[1], canvas_hw[1] // stride - 1) + 1)
        cell_K2 = torch.cartesian_prod(rows, columns).reshape(-1, 2)
        distance_K = ((cell_K2 + 0.5) * stride - center_2[[1, 0]]).norm(dim=1)
        cell_K2 = cell_K2[distance_K.argsort(stable=True)]
        found.append(torch.cat([torch.full_like(cell_K2[:, :1], level), cell_K2], dim=1))
    around = torch.arange(-2, 3)
    middle_2 = (center_2[[1, 0]] / strides[0]).floor().long()
    limit_2 = torch.tensor([canvas_hw[0] // strides[0] - 1, canvas_hw[1] // strides[0] - 1])
    cell_K2 = (middle_2 + torch.cartesian_prod(around, around)).clamp(min=0).minimum(limit_2)
    found.append(torch.cat([torch.zeros_like(cell_K2[:, :1]), cell_K2], dim=1))
    return torch.cat(found)
