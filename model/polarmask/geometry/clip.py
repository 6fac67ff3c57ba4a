"""What of an outline or a mask lies in a box of whole pixels, in coordinates from its corner.

Dimension key
    V: vertices    2: (x, y) in pixels
"""

import numpy as np
from numpy.typing import NDArray

from polarmask.geometry.masks import (
    Polygon,
    Rle,
    crop_from_rle,
    polygons_from_rle,
    rles_from_labels,
    rles_from_polygons,
)

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels."""


def clip_polygon(polygon: Polygon, box: PixelBox) -> tuple[Polygon, ...]:
    """Return the pieces of an outline in a box, in any order; none if nothing is inside.

    The border of the box closes them. One piece is exact; of an outline that is cut into several,
    each is traced from its pixels.
    """
    x0, y0, x1, y1 = box
    piece = polygon - (x0, y0)
    crossings = 0
    for axis, length in enumerate((x1 - x0, y1 - y0)):
        for sign, border in ((1, 0), (-1, length)):
            inside_V = sign * (piece[:, axis] - border)
            if (inside_V < 0).any():
                crossings = max(crossings, _count_crossings(inside_V))
                piece = _cut(piece, inside_V, axis, border)
            if len(piece) < 3:
                return ()
    if crossings <= 2:
        return (piece,)
    return polygons_from_rle(rles_from_polygons([piece], (y1 - y0, x1 - x0))[0])


def _count_crossings(inside_V: NDArray[np.float64]) -> int:
    return int(np.count_nonzero((inside_V < 0) != (np.roll(inside_V, -1) < 0)))


def _cut(vertex_V2: Polygon, inside_V: NDArray[np.float64], axis: int, border: float) -> Polygon:
    """Drop what lies outside of a line; pieces stay joined along it (Sutherland and Hodgman).

    Args:
        vertex_V2: The outline.
        inside_V: Distance of each vertex from the line, negative outside.
        axis: 0 for a line x = border, 1 for y = border.
        border: Where the line is, in pixels.
    """
    next_V2, next_V = np.roll(vertex_V2, -1, axis=0), np.roll(inside_V, -1)
    crosses_V = (inside_V < 0) != (next_V < 0)
    share_V = np.divide(inside_V, inside_V - next_V, where=crosses_V, out=np.zeros(len(next_V)))
    crossing_V2 = vertex_V2 + (next_V2 - vertex_V2) * share_V[:, None]
    crossing_V2[:, axis] = border
    # After each vertex comes the point where the edge that begins there crosses the line.
    both_V22 = np.stack([vertex_V2, crossing_V2], axis=1)
    return np.asarray(both_V22[np.stack([inside_V >= 0, crosses_V], axis=1)])


def clip_rle(rle: Rle, box: PixelBox) -> Rle | None:
    """Return the part of a mask in a box, as a mask of the box; None if it is empty."""
    x0, y0, x1, y1 = box
    bitmap, (left, top) = crop_from_rle(rle)
    right, bottom = left + bitmap.shape[1], top + bitmap.shape[0]
    part = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    if max(left, x0) < min(right, x1) and max(top, y0) < min(bottom, y1):
        rows = slice(max(top, y0) - y0, min(bottom, y1) - y0)
        columns = slice(max(left, x0) - x0, min(right, x1) - x0)
        part[rows, columns] = bitmap[
            max(top, y0) - top : min(bottom, y1) - top,
            max(left, x0) - left : min(right, x1) - left,
        ]
    found = rles_from_labels(part)
    return found[0] if found else None
