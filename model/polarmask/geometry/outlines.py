"""One annotation's geometry as the file gives it -> checked outline, box and area.

Polygons are in continuous pixel coordinates: the pixel in row i and column j covers
[j, j+1) x [i, i+1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Any

import numpy as np

from polarmask.geometry.masks import (
    Polygon,
    Rle,
    Segmentation,
    filled_areas,
    main_parts,
    parse_rle,
    polygons_from_rle,
    rle_area,
    rle_box,
    rles_from_polygons,
)

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""

_EDGE_TOLERANCE = 1.0
"""Pixels by which COCO's own boxes leave the image through rounding."""

_BEYOND = 0.05
"""By how much normalised coordinates may leave 0 to 1."""

_TINY_IMAGE = 2
"""Side in pixels; in images of up to this, coordinates from 0 to 1 are nothing special."""

_MOST_PAIRED = 2000
"""Vertices up to which each pair of edges is looked at."""


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
    """(V, 2) float64 clipped to the image, largest first, without specks; empty for a crowd."""
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
    if isinstance(segmentation, dict):
        outline = _outline_of_rle(segmentation, image_hw, crowd)
    else:
        outline = _outline_of_polygons(segmentation, image_hw, crowd)
    read = outline.segmentation
    box = rle_box(read) if isinstance(read, dict) else outline.bbox
    note = _compare_boxes(raw.get("bbox"), box, image_hw)
    return replace(outline, notes=(*outline.notes, note)) if note else outline


def _compare_boxes(file_box: object, box: Box, image_hw: tuple[int, int]) -> tuple[str, str] | None:
    """Note a box in the file that is far from the outline's, which is used in its place."""
    try:
        x, y, width, height = (float(value) for value in file_box)  # type: ignore[attr-defined]  # or it raises
    except (TypeError, ValueError, OverflowError):
        return None  # null, or no box at all
    limit = image_hw[1], image_hw[0], image_hw[1], image_hw[0]
    clipped = [
        min(max(v, 0), most) for v, most in zip((x, y, x + width, y + height), limit, strict=True)
    ]
    # Boxes of whole objects may be larger than what is seen of them.
    enough = max(box[2] - box[0], box[3] - box[1]) / 2 + _EDGE_TOLERANCE
    if all(abs(given - own) <= enough for given, own in zip(clipped, box, strict=True)):
        return None
    detail = (
        f"bbox x {x:g}, y {y:g}, width {width:g}, height {height:g} is not around the outline "
        f"(x {box[0]:g} to {box[2]:g}, y {box[1]:g} to {box[3]:g}); the outline is kept"
    )
    return "bbox_mismatch", detail


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


def _outline_of_rle(raw: dict[str, Any], image_hw: tuple[int, int], crowd: bool) -> Outline:
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
    # Outlines lie 1/8 px inside the pixels; the mask's own box holds specks, too.
    x0, y0, x1, y1 = _extent(parts) if parts else rle_box(rle)
    box = float(floor(x0)), float(floor(y0)), float(ceil(x1)), float(ceil(y1))
    return Outline(rle, parts, box, float(area), ())


def _outline_of_polygons(raw: object, image_hw: tuple[int, int], crowd: bool) -> Outline:
    polygons, notes = _parse_polygons(raw)
    extent = _extent(polygons)
    _refuse_normalised(extent, image_hw)
    notes += _check_extent(extent, image_hw)
    reach = max(-extent[0], -extent[1], extent[2] - image_hw[1], extent[3] - image_hw[0])
    # The rasteriser walks along every edge in small steps, so a stray 1e9 would hang it.
    if reach > max(image_hw):
        raise OutlineError("bad_coordinates", f"the outline reaches {reach:g} px past the image")
    # Coordinates are clamped, not intersected: rays need no more, and the outline stays one loop.
    size_xy = np.array(image_hw[::-1], dtype=np.float64)
    whole = reach <= 0
    clipped = polygons if whole else [polygon.clip(0.0, size_xy) for polygon in polygons]
    parts, areas = _fill(clipped, image_hw, notes)
    order = main_parts(areas)
    if not order:
        raise OutlineError("zero_area", "the outline encloses nothing inside the image")
    kept = tuple(parts[index] for index in order)
    bbox = extent if whole else _extent(kept)
    return Outline(tuple(polygons), () if crowd else kept, bbox, sum(areas), tuple(notes))


def _refuse_normalised(extent: Box, image_hw: tuple[int, int]) -> None:
    height, width = image_hw
    if min(extent) >= -_BEYOND and max(extent) <= 1 + _BEYOND and max(image_hw) > _TINY_IMAGE:
        raise OutlineError(
            "normalised_coordinates",
            f"all coordinates lie between 0 and 1, as if divided by the image's size; "
            f"multiply x by {width} and y by {height}",
        )


def _fill(
    polygons: list[Polygon], image_hw: tuple[int, int], notes: list[tuple[str, str]]
) -> tuple[list[Polygon], list[float]]:
    """Return parts and areas; of outlines that cross themselves those of the pixels they cover."""
    parts: list[Polygon] = []
    areas: list[float] = []
    crossing = 0
    for polygon, filled in zip(polygons, filled_areas(polygons, image_hw), strict=True):
        area = polygon_area(polygon)
        if not _crosses_itself(polygon, area, filled):
            parts.append(polygon)
            areas.append(area)
            continue
        crossing += 1
        traced = polygons_from_rle(rles_from_polygons([polygon], image_hw)[0])
        share = [polygon_area(part) for part in traced]
        parts += traced
        areas += [filled * each / sum(share) for each in share]
    if crossing:
        detail = f"{crossing} of {len(polygons)} parts cross themselves; kept as COCO fills them"
        notes.append(("self_crossing_outline", detail))
    return parts, areas


def _crosses_itself(polygon: Polygon, area: float, filled: int) -> bool:
    """Return whether an outline does, if the pixels it covers differ much from its area."""
    difference = abs(area - filled)
    if difference <= 1 + area / 50:
        return area == 0 and filled > 0
    edge_V2 = np.roll(polygon, -1, axis=0) - polygon
    length_V = np.hypot(edge_V2[:, 0], edge_V2[:, 1])
    # Rounding at the border is below half a pixel for each pixel of it, and mostly far below.
    share = difference / float(length_V.sum())
    if share < 0.05 or share > 0.5:
        return share > 0.5
    start_V2, edge_V2 = polygon[length_V > 0], edge_V2[length_V > 0]
    number = len(start_V2)
    if number > _MOST_PAIRED:
        return False
    x_VV, y_VV = (start_V2[None] - start_V2[:, None]).transpose(2, 0, 1)
    left_VV = edge_V2[:, :1] * y_VV > edge_V2[:, 1:] * x_VV
    parted_VV = left_VV != np.roll(left_VV, -1, axis=1)  # edge i's line parts the ends of edge j
    apart_VV = (np.arange(number)[:, None] - np.arange(number) + 1) % number > 2  # share no end
    return bool((parted_VV & parted_VV.T & apart_VV).any())


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
    detail = f"{short} of {len(raw)} parts have under 3 points; rest kept"
    return polygons, [("short_polygon", detail)] if short else []


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area in square pixels, whichever way the outline runs."""
    x, y = polygon[:, 0] - polygon[0, 0], polygon[:, 1] - polygon[0, 1]
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
