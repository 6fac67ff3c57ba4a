"""Polar geometry: polygons to ray lengths and back. Pure functions, any device.

Dimension key
    P: points (candidate centres)    R: rays per point    G: polygons    E: edges of all polygons
    M: point-edge pairs              2: (x, y), x to the right, y down, in pixels

Pixel (row i, column j) covers [j, j + 1) x [i, i + 1). Ray k leaves at 2 * pi * k / R, clockwise on
screen from +x, because y points down (ADR 0008).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_LENGTH = 1e-3
"""Shortest ray in pixels: ratios and logarithms of rays stay finite."""

_MAX_PAIR_RAYS = 1 << 22
"""Point-edge-ray triples computed at once: 16 MB per float32 temporary."""


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

    def area_and_centroid(self) -> tuple[Tensor, Tensor]:
        """Return area (G,) in square pixels and mass centre (G, 2).

        A polygon without area has the mean of its vertices as its centre.
        """
        counts_G = self.offset_G1.diff()
        owner_E = torch.repeat_interleave(counts_G)
        # Relative to the first vertex: products of absolute coordinates lose digits in float32.
        origin_G2 = self.start_E2[self.offset_G1[:-1]]
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
        return twice_area_G.abs() / 2, origin_G2 + center_G2


def ray_directions(num_rays: int, *, like: Tensor) -> Tensor:
    """Return unit vectors (R, 2) of the rays, with dtype and device of `like`."""
    angle_R = torch.arange(num_rays, dtype=torch.float64) * (2 * math.pi / num_rays)
    return torch.stack([angle_R.cos(), angle_R.sin()], dim=-1).to(like)


def cast_rays(
    point_P2: Tensor, polygon_P: Tensor, polygons: Polygons, num_rays: int
) -> tuple[Tensor, Tensor]:
    """Measure from each point to the farthest crossing of each ray with the point's polygon.

    Exact: every edge is intersected, nothing is binned (SPEC of the original: 1-degree bins).

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
    direction_R2 = ray_directions(num_rays, like=point_P2)
    for first, last in _chunks(count_P, num_rays):
        length, inside = _cast_chunk(
            point_P2[first:last],
            polygons.offset_G1[polygon_P[first:last]],
            count_P[first:last],
            polygons,
            direction_R2,
        )
        lengths.append(length)
        insides.append(inside)
    if not lengths:
        return point_P2.new_zeros(0, num_rays), point_P2.new_zeros(0, dtype=torch.bool)
    return torch.cat(lengths), torch.cat(insides)


def _chunks(count_P: Tensor, num_rays: int) -> list[tuple[int, int]]:
    """Split points so that a chunk's pairs fit the memory bound; one point is never split."""
    bounds, first, pairs = [], 0, 0
    for index, count in enumerate(count_P.tolist()):
        if pairs and (pairs + count) * num_rays > _MAX_PAIR_RAYS:
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
    a_M2 = polygons.start_E2[edge_M] - point_P2[point_M]
    b_M2 = polygons.stop_E2[edge_M] - point_P2[point_M]
    normal_2R = torch.stack([-direction_R2[:, 1], direction_R2[:, 0]])
    side_a_MR = a_M2 @ normal_2R
    side_b_MR = b_M2 @ normal_2R
    # Half-open rule: a vertex on the ray belongs to one of its two edges, so crossings pair up.
    crosses_MR = (side_a_MR > 0) != (side_b_MR > 0)
    along_a_MR = a_M2 @ direction_R2.T
    along_b_MR = b_M2 @ direction_R2.T
    span_MR = torch.where(crosses_MR, side_b_MR - side_a_MR, 1.0)
    distance_MR = (along_a_MR * side_b_MR - along_b_MR * side_a_MR) / span_MR
    distance_MR = torch.where(crosses_MR & (distance_MR >= 0), distance_MR, -1.0)
    length_PR = distance_MR.new_full((len(point_P2), len(direction_R2)), MIN_LENGTH)
    length_PR.scatter_reduce_(0, point_M[:, None].expand_as(distance_MR), distance_MR, "amax")
    crossings_P = length_PR.new_zeros(len(point_P2))
    crossings_P.index_add_(0, point_M, (distance_MR[:, 0] >= 0).to(length_PR.dtype))
    return length_PR, crossings_P % 2 == 1


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
