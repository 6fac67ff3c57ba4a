"""The original's ray labels, whole pixels and faults included, without its loops.

What it measures: bitmaps become contours of pixel centres, angles are cut to whole degrees, and a
ray looks for contour points up to three degrees away (ADR 0009). Faults that are kept: a ray that
finds nothing is 1e-6 long, a point on the contour has a ray of length 0, the first ray does not
look beyond 0 degrees, and an angle that rounds to 360 is lost.

Dimension key
    P: points    R: rays    V: contour points    G: objects    M: point-contour point pairs
    A: whole degrees    2: (x, y) in pixels, whole numbers at pixel centres
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MISSING = 1e-6
"""Length of a ray that meets no contour point, in pixels."""

_DEGREES = 360
_SEARCH = (0, 1, -1, 2, -2, 3, -3)
"""Degrees beside a ray's own in which it looks, in this order."""


def largest_contour(bitmap_HW: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the contour (V, 2) that encloses most, pixel by pixel; (0, 2) without any."""
    contours, _ = cv2.findContours(bitmap_HW, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2), dtype=np.int64)
    return np.asarray(max(contours, key=cv2.contourArea)[:, 0, :], dtype=np.int64)


def mass_center(contour_V2: NDArray[np.int64]) -> tuple[int, int]:
    """Return the centroid of what a contour encloses, cut to whole pixels."""
    before_V2 = np.roll(contour_V2, 1, axis=0)
    cross_V = contour_V2[:, 0] * before_V2[:, 1] - contour_V2[:, 1] * before_V2[:, 0]
    area = cross_V.sum() / 2
    if area == 0:
        x, y = contour_V2.mean(axis=0)
    else:
        x, y = (cross_V[:, None] * (contour_V2 + before_V2)).sum(axis=0) / (6 * area)
    return int(x), int(y)


def binned_rays(
    point_P2: Tensor, object_P: Tensor, contours: list[Tensor], num_rays: int
) -> Tensor:
    """Measure rays from each point to the contour of its object.

    Args:
        point_P2: Ray origins, float32.
        object_P: Index of each point's contour.
        contours: (V, 2) per object, V >= 1.
        num_rays: R, a divisor of 360 and a multiple of 4.

    Returns:
        Lengths (P, R) in pixels, ray 0 to the right, clockwise on screen; MISSING or 0 where the
        original has these.
    """
    count_G = torch.tensor([len(contour) for contour in contours])
    first_G = count_G.cumsum(0) - count_G
    point_M = torch.repeat_interleave(count_G[object_P])
    nth_M = torch.arange(len(point_M))
    nth_M = nth_M - (count_G[object_P].cumsum(0) - count_G[object_P])[point_M]
    contour_M2 = torch.cat(contours)[first_G[object_P][point_M] + nth_M].float()
    offset_M2 = contour_M2 - point_P2[point_M]
    angle_M = torch.atan2(offset_M2[:, 0], offset_M2[:, 1]) * 180 / np.pi
    angle_M = torch.where(angle_M < 0, angle_M + _DEGREES, angle_M).int().long()
    # In float64: torch's float32 root is off by a last bit on some processors.
    distance_M = (offset_M2[:, 0] ** 2 + offset_M2[:, 1] ** 2).double().sqrt().float()
    # Degrees before 0 and after 359 stay empty; the last column takes what rounds to 360 and is
    # never looked up.
    margin = max(_SEARCH)
    farthest_PA = torch.full((len(point_P2), _DEGREES + 2 * margin + 1), -1.0)
    column_M = torch.where(angle_M < _DEGREES, angle_M + margin, farthest_PA.shape[1] - 1)
    place_M = point_M * farthest_PA.shape[1] + column_M
    farthest_PA.view(-1).scatter_reduce_(0, place_M, distance_M, "amax")
    degree_R = torch.arange(num_rays) * (_DEGREES // num_rays) + margin
    length_PR = torch.full((len(point_P2), num_rays), -1.0)
    for step in _SEARCH:
        length_PR = torch.where(length_PR < 0, farthest_PA[:, degree_R + step], length_PR)
    length_PR = torch.where(length_PR < 0, MISSING, length_PR)
    return length_PR[:, _our_order(num_rays)]


def _our_order(num_rays: int) -> Tensor:
    """Return for each of our rays the original's; its first points down, the next turns right."""
    return (num_rays // 4 - torch.arange(num_rays)) % num_rays


def original_directions(num_rays: int, *, like: Tensor) -> Tensor:
    """Return unit vectors (R, 2) of our rays with the original's rounding.

    Its angles are float32, so its ray to the right points up by 4e-8: enough to cut a vertex on a
    whole pixel to the one above.
    """
    angle_R = torch.arange(num_rays) * (_DEGREES / num_rays) / 180 * math.pi
    direction_R2 = torch.stack([angle_R.sin(), angle_R.cos()], dim=-1)
    return direction_R2[_our_order(num_rays)].to(like)
