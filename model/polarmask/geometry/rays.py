"""Polar geometry: polygons to ray lengths and back. Pure functions, any device.

Dimension key
    P: points (candidate centres)    R: rays per point    G: polygons    E: edges of all polygons
    M: point-edge pairs              T: pairs with each ray they may cross
    2: (x, y), x to the right, y down, in pixels

Pixel (row i, column j) covers [j, j + 1) x [i, i + 1). Ray k leaves at 2 * pi * k / R, clockwise on
screen from +x, because y points down (ADR 0008).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_LENGTH = 1e-3
"""Shortest ray in pixels: ratios and logarithms of rays stay finite."""

_MAX_PAIRS = 1 << 20
"""Point-edge pairs computed at once: 8 MB for the coordinates of one end."""

_ANGLE_MARGIN = 0.01
"""Ray spacings by which an edge's angles may be off; float32 has 1e-5."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """Closed polygons of any vertex count, stored flat.

    Attributes:
        start_E2: First end of every edge, polygon after polygon.
        stop_E2: Second end of every edge; the last edge of a polygon returns to its first vertex.
        offset_G1: Edge range of polygon g is offset_G1[g] to offset_G1[g + 1]; G + 1 entries.
    """

    start_E2: Tensor
    stop_E2: Tensor
    offset_G1: Tensor

    @classmethod
    def from_vertices(cls, vertices: list[Tensor]) -> "Polygons":
        """Flatten a list of (V, 2) vertex tensors, V >= 3, not repeating the first vertex."""
        counts = torch.tensor([0] + [len(polygon) for polygon in vertices])
        if not vertices:
            empty = torch.zeros(0, 2)
            return cls(empty, empty, counts)
        start_E2 = torch.cat(vertices)
        stop_E2 = torch.cat([polygon.roll(-1, dims=0) for polygon in vertices])
        return cls(start_E2, stop_E2, counts.cumsum(0).to(start_E2.device))

    def to(self, device: str | torch.device) -> "Polygons":
        """Return a copy on a device."""
        return Polygons(
            self.start_E2.to(device), self.stop_E2.to(device), self.offset_G1.to(device)
        )

    def area_and_centroid(self) -> tuple[Tensor, Tensor]:
        """Return area (G,) in square pixels and mass centre (G, 2).

        A polygon without area has the mean of its vertices as its centre.
        """
        counts_G = self.offset_G1.diff()
        owner_E = torch.repeat_interleave(counts_G)
        # In float64: sums in any order then round to the same centre in float32.
        origin_G2 = self.start_E2[self.offset_G1[:-1]].double()
        a_E2 = self.start_E2 - origin_G2[owner_E]
        b_E2 = self.stop_E2 - origin_G2[owner_E]
        cross_E = a_E2[:, 0] * b_E2[:, 1] - a_E2[:, 1] * b_E2[:, 0]
        zeros_G2 = torch.zeros_like(origin_G2)
        twice_area_G = zeros_G2[:, 0].index_add(0, owner_E, cross_E)
        moment_G2 = zeros_G2.index_add(0, owner_E, (a_E2 + b_E2) * cross_E[:, None])
        mean_G2 = zeros_G2.index_add(0, owner_E, a_E2) / counts_G[:, None]
        flat_G = twice_area_G.abs() < 1e-6
        divisor_G = torch.where(flat_G, 1.0, 3 * twice_area_G)
        center_G2 = torch.where(flat_G[:, None], mean_G2, moment_G2 / divisor_G[:, None])
        return (twice_area_G.abs() / 2).to(self.start_E2), (origin_G2 + center_G2).to(self.start_E2)

    def boxes(self) -> Tensor:
        """Return x0, y0, x1, y1 (G, 4) of each polygon."""
        counts_G = self.offset_G1.diff()
        owner_E2 = torch.repeat_interleave(counts_G)[:, None].expand(-1, 2)
        empty_G2 = self.start_E2.new_zeros(len(counts_G), 2)
        low_G2 = empty_G2.scatter_reduce(0, owner_E2, self.start_E2, "amin", include_self=False)
        high_G2 = empty_G2.scatter_reduce(0, owner_E2, self.start_E2, "amax", include_self=False)
        return torch.cat([low_G2, high_G2], dim=1)


def direction_table(num_rays: int) -> NDArray[np.float64]:
    """Return unit vectors (R, 2) of the rays: the one table that all ways of casting share."""
    angle_R = np.arange(num_rays) * (2 * math.pi / num_rays)
    return np.stack([np.cos(angle_R), np.sin(angle_R)], axis=1)


def ray_directions(num_rays: int, *, like: Tensor) -> Tensor:
    """Return unit vectors (R, 2) of the rays, with dtype and device of `like`."""
    return torch.from_numpy(direction_table(num_rays)).to(like)


def cast_rays(
    point_P2: Tensor, polygon_P: Tensor, polygons: Polygons, num_rays: int
) -> tuple[Tensor, Tensor]:
    """Measure from each point to the farthest crossing of each ray with the point's polygon.

    Exact: every edge is intersected with the rays that it spans, nothing is binned (SPEC of the
    original: 1-degree bins).

    Args:
        point_P2: Ray origins.
        polygon_P: Index of the polygon that each point looks at.
        polygons: The polygons.
        num_rays: R.

    Returns:
        Lengths (P, R) in pixels, MIN_LENGTH where a ray meets nothing (only from points outside),
        and a bool tensor (P,): whether the point lies inside its polygon (even-odd rule).
    """
    count_P = polygons.offset_G1.diff()[polygon_P]
    lengths, insides = [], []
    # In float64, like the compiled way: both then see the same crossings, also at grazed corners.
    direction_R2 = ray_directions(num_rays, like=point_P2.double())
    for first, last in _chunks(count_P):
        length, inside = _cast_chunk(
            point_P2[first:last],
            polygons.offset_G1[polygon_P[first:last]],
            count_P[first:last],
            polygons,
            direction_R2,
        )
        lengths.append(length.to(point_P2))
        insides.append(inside)
    if not lengths:
        return point_P2.new_zeros(0, num_rays), point_P2.new_zeros(0, dtype=torch.bool)
    return torch.cat(lengths), torch.cat(insides)


def _chunks(count_P: Tensor) -> list[tuple[int, int]]:
    """Split points so that a chunk's pairs fit the memory bound; one point is never split."""
    bounds, first, pairs = [], 0, 0
    for index, count in enumerate(count_P.tolist()):
        if pairs and pairs + count > _MAX_PAIRS:
            bounds.append((first, index))
            first, pairs = index, 0
        pairs += count
    if first < len(count_P):
        bounds.append((first, len(count_P)))
    return bounds


def _cast_chunk(
    point_P2: Tensor,
    first_edge_P: Tensor,
    count_P: Tensor,
    polygons: Polygons,
    direction_R2: Tensor,
) -> tuple[Tensor, Tensor]:
    point_M = torch.repeat_interleave(count_P)
    nth_M = torch.arange(len(point_M), device=point_M.device)
    nth_M = nth_M - (count_P.cumsum(0) - count_P)[point_M]
    edge_M = first_edge_P[point_M] + nth_M
    point_M2 = point_P2[point_M].double()
    a_M2 = polygons.start_E2[edge_M] - point_M2
    b_M2 = polygons.stop_E2[edge_M] - point_M2
    pair_T, ray_T = _spanned_rays(a_M2, b_M2, len(direction_R2))
    a_T2, b_T2, point_T = a_M2[pair_T], b_M2[pair_T], point_M[pair_T]
    direction_T2 = direction_R2[ray_T]
    side_a_T, side_b_T = _side(a_T2, direction_T2), _side(b_T2, direction_T2)
    # Half-open rule: a vertex on the ray belongs to one of its two edges, so crossings pair up.
    crosses_T = (side_a_T > 0) != (side_b_T > 0)
    along_a_T, along_b_T = _along(a_T2, direction_T2), _along(b_T2, direction_T2)
    span_T = torch.where(crosses_T, side_b_T - side_a_T, 1.0)
    distance_T = (along_a_T * side_b_T - along_b_T * side_a_T) / span_T
    distance_T = torch.where(crosses_T & (distance_T >= 0), distance_T, -1.0)
    length_PR = distance_T.new_full((len(point_P2), len(direction_R2)), MIN_LENGTH)
    place_T = point_T * len(direction_R2) + ray_T
    length_PR.view(-1).scatter_reduce_(0, place_T, distance_T, "amax")
    crossings_P = length_PR.new_zeros(len(point_P2))
    first_ray_T = (ray_T == 0) & (distance_T >= 0)
    crossings_P.index_add_(0, point_T, first_ray_T.to(length_PR.dtype))
    return length_PR, crossings_P % 2 == 1


def _spanned_rays(a_M2: Tensor, b_M2: Tensor, num_rays: int) -> tuple[Tensor, Tensor]:
    """Return pair and ray (T,) wherever an edge may cross a ray: few, as most edges are short.

    Angles only choose, generously; whether there is a crossing is for the caller to compute. An
    edge that starts or ends at the point, or nearly runs through it, may cross any ray.
    """
    per_turn = num_rays / (2 * math.pi)
    angle_a_M = torch.atan2(a_M2[:, 1], a_M2[:, 0]) * per_turn
    angle_b_M = torch.atan2(b_M2[:, 1], b_M2[:, 0]) * per_turn
    turn_M = torch.remainder(angle_b_M - angle_a_M + num_rays / 2, num_rays) - num_rays / 2
    low_M = torch.minimum(angle_a_M, angle_a_M + turn_M)
    first_M = (low_M - _ANGLE_MARGIN).ceil().long()
    last_M = (low_M + turn_M.abs() + _ANGLE_MARGIN).floor().long()
    touches_M = (a_M2 == 0).all(dim=1) | (b_M2 == 0).all(dim=1)
    any_M = touches_M | (turn_M.abs() > num_rays / 2 - 1)
    count_M = torch.where(any_M, num_rays, last_M - first_M + 1)
    pair_T = torch.repeat_interleave(count_M)
    nth_T = torch.arange(len(pair_T), device=pair_T.device)
    nth_T = nth_T - (count_M.cumsum(0) - count_M)[pair_T]
    return pair_T, (first_M[pair_T] + nth_T) % num_rays


def _side(a_T2: Tensor, direction_T2: Tensor) -> Tensor:
    """Return how far a point lies to the right of a ray, written out: no product may be fused."""
    first_T = a_T2[:, 1] * direction_T2[:, 0]
    return first_T - a_T2[:, 0] * direction_T2[:, 1]


def _along(a_T2: Tensor, direction_T2: Tensor) -> Tensor:
    first_T = a_T2[:, 0] * direction_T2[:, 0]
    return first_T + a_T2[:, 1] * direction_T2[:, 1]


def decode_rays(center_P2: Tensor, length_PR: Tensor, direction_R2: Tensor | None = None) -> Tensor:
    """Turn ray lengths into polygon vertices.

    Args:
        center_P2: Ray origins (x, y) in pixels.
        length_PR: Distance from origin to contour along each ray, in pixels, >= 0.
        direction_R2: Unit vectors of the rays; None takes `ray_directions`.

    Returns:
        Vertices (x, y) in pixels, shape (P, R, 2), in ray order. They may lie outside the image;
        the caller clips.
    """
    if direction_R2 is None:
        direction_R2 = ray_directions(length_PR.shape[1], like=length_PR)
    return center_P2[:, None, :] + length_PR[..., None] * direction_R2
