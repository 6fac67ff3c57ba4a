"""One annotation's geometry as the file gives it -> checked outline, box and area.

Polygons are in continuous pixel coordinates: the pixel in row i and column j covers
[j, j+1) x [i, i+1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polarmask.geometry.masks import (
    Polygon,
    Rle,
    Segmentation,
    parse_rle,
    polygons_from_rle,
    rle_area,
    rle_box,
)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

_EDGE_TOLERANCE = 1.0
"""Pixels by which COCO's own boxes leave the image through rounding."""


class OutlineError(Exception):
    """An annotation that can't be used; `kind` is the problem's stable identifier."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Outline:
    """Where an object is."""

    segmentation: Segmentation
    """As in the file, unclipped; RLE compressed."""
    parts: tuple[Polygon, ...]
    """(V, 2) float64 clipped to the image, largest first; empty for a crowd region."""
    bbox: Box
    area: float
    """Square pixels."""
    notes: tuple[tuple[str, str], ...]
    """Problems (kind, detail) that don't stop its use."""


def read_outline(raw: dict[str, Any], image_hw: tuple[int, int], *, crowd: bool) -> Outline:
    """Check a COCO annotation's `segmentation` and `bbox` and derive the rest from the former.

    Raises:
        OutlineError: The annotation can't be used.
    """
    segmentation = raw.get("segmentation")
    if not segmentation:
        raise OutlineError("empty_segmentation", "the object has no outline")
    notes = _check_file_box(raw.get("bbox"), image_hw)
    if isinstance(segmentation, dict):
        return _outline_of_rle(segmentation, image_hw, notes, crowd)
    return _outline_of_polygons(segmentation, image_hw, notes, crowd)


def _check_file_box(box: object, image_hw: tuple[int, int]) -> list[tuple[str, str]]:
    """Check that the file's own box lies in the image; the box is used for nothing else."""
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(value) for value in box):
        return []
    x, y, width, height = box
    return _check_extent((x, y, x + width, y + height), image_hw)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check_extent(box: Box, image_hw: tuple[int, int]) -> list[tuple[str, str]]:
    x0, y0, x1, y1 = box
    height, width = image_hw
    outside = x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0
    if not outside and min(x0, y0, width - x1, height - y1) >= -_EDGE_TOLERANCE:
        return []
    place = f"x {x0:g} to {x1:g}, y {y0:g} to {y1:g} in an image of {width}x{height}"
    if outside:
        raise OutlineError("box_outside_image", place)
    return [("box_partly_outside_image", f"{place}; clipped")]


def _outline_of_rle(
    raw: dict[str, Any], image_hw: tuple[int, int], notes: list[tuple[str, str]], crowd: bool
) -> Outline:
    try:
        rle: Rle = parse_rle(raw, image_hw)
    except ValueError as error:
        wrong_size = raw.get("size") != list(image_hw)
        raise OutlineError("rle_wrong_size" if wrong_size else "bad_rle", str(error)) from error
    area = rle_area(rle)
    if area == 0:
        raise OutlineError("empty_segmentation", "the RLE holds no pixel")
    parts = () if crowd else polygons_from_rle(rle)
    parts = tuple(sorted(parts, key=polygon_area, reverse=True))
    return Outline(rle, parts, rle_box(rle), float(area), tuple(notes))


def _outline_of_polygons(
    raw: object, image_hw: tuple[int, int], notes: list[tuple[str, str]], crowd: bool
) -> Outline:
    polygons, skipped = _parse_polygons(raw)
    extent = _extent(polygons)
    beyond = _check_extent(extent, image_hw)
    reach = max(-extent[0], -extent[1], extent[2] - image_hw[1], extent[3] - image_hw[0])
    # The rasteriser walks along every edge in small steps, so a stray 1e9 would hang it.
    if reach > max(image_hw):
        raise OutlineError("bad_coordinates", f"the outline reaches {reach:g} px past the image")
    notes = [*(notes or beyond), *skipped]
    # Coordinates are clamped, not intersected: rays need no more, and the outline stays one loop.
    size_xy = np.array(image_hw[::-1], dtype=np.float64)
    whole = reach <= 0
    clipped = polygons if whole else [polygon.clip(0.0, size_xy) for polygon in polygons]
    areas = [polygon_area(polygon) for polygon in clipped]
    order = sorted(range(len(clipped)), key=lambda index: -areas[index])
    parts = tuple(clipped[index] for index in order if areas[index] > 0)
    if not parts:
        raise OutlineError("zero_area", "the outline encloses nothing inside the image")
    bbox = extent if whole else _extent(parts)
    return Outline(tuple(polygons), () if crowd else parts, bbox, sum(areas), tuple(notes))


def _extent(polygons: Sequence[Polygon]) -> Box:
    vertices = polygons[0] if len(polygons) == 1 else np.concatenate(polygons)
    x0, y0, x1, y1 = (float(value) for value in (*vertices.min(axis=0), *vertices.max(axis=0)))
    return x0, y0, x1, y1


def _parse_polygons(raw: object) -> tuple[list[Polygon], list[tuple[str, str]]]:
    """Turn COCO's lists of x, y, x, y, ... into arrays.

    A part of under 3 points is skipped if others remain. Other defects make the object unusable,
    because they point to a fault in the program that wrote the file.
    """
    if not isinstance(raw, list):
        raise OutlineError("malformed_segmentation", f"a {type(raw).__name__} is no outline")
    if any(isinstance(part, dict) for part in raw):
        raise OutlineError("mixed_segmentation", "the list holds an RLE; give polygons or one RLE")
    polygons, short = [], 0
    for part in raw:
        if not isinstance(part, list):
            detail = "give a list of polygons, each a list x, y, x, y, ..."
            raise OutlineError("malformed_segmentation", detail)
        if len(part) % 2:
            raise OutlineError("odd_coordinates", f"a polygon has {len(part)} numbers")
        try:
            flat = np.array(part, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            raise OutlineError("bad_coordinates", "a coordinate is no number") from None
        if flat.ndim != 1:
            raise OutlineError("bad_coordinates", "a polygon is a flat list x, y, x, y, ...")
        polygon = flat.reshape(-1, 2)
        if not np.isfinite(polygon).all():
            raise OutlineError("bad_coordinates", "a coordinate is infinite or not a number")
        if len(polygon) > 1 and (polygon[0] == polygon[-1]).all():
            polygon = polygon[:-1]
        if len(polygon) < 3:
            short += 1
        else:
            polygons.append(polygon)
    if not polygons:
        raise OutlineError("short_polygon", "no part has 3 points")
    notes = [("short_polygon", f"{short} of {len(raw)} parts have under 3 points; rest kept")]
    return polygons, notes if short else []


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area in square pixels, whichever way the outline runs."""
    x, y = polygon[:, 0] - polygon[0, 0], polygon[:, 1] - polygon[0, 1]
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
