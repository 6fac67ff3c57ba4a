"""labelme: one JSON file per image with a list of shapes."""

import base64
import binascii
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from polarmask.data.images import read_size
from polarmask.errors import DataError
from polarmask.geometry.masks import Rle, rles_from_labels, rles_from_polygons, united
from polarmask.importing.source import (
    Source,
    SourceImage,
    SourceObject,
    image_files,
    split_of,
    visible_files,
)

_CIRCLE_VERTICES = 72
_UNUSABLE = DataError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError


def read_labelme(folder: Path) -> Source:
    """Read every labelme file below a folder; shapes with one `group_id` are one object."""
    source = Source("labelme", ())
    source.images = _read(folder, source)
    return source


def is_labelme(path: Path) -> bool:
    """Return whether a JSON file looks like labelme's."""
    with path.open("rb") as file:
        start = file.read(4096)
    return b'"shapes"' in start


def _read(folder: Path, source: Source) -> Iterator[SourceImage]:
    images: dict[str, list[Path]] = defaultdict(list)
    for path in image_files(folder):
        images[path.stem].append(path)
    for path in visible_files(folder):
        if path.suffix.lower() != ".json" or not is_labelme(path):
            continue
        try:
            raw = json.loads(path.read_bytes())
            image = _image_of(path, raw, images)
            height, width = read_size(image)
            objects = tuple(_objects(path, raw["shapes"], (height, width), source))
        except _UNUSABLE as error:
            source.leave_out("image", "unusable_file", path, str(error))
            continue
        yield SourceImage(image, width, height, objects, split_of(path.parent.relative_to(folder)))


def _image_of(path: Path, raw: dict[str, Any], images: dict[str, list[Path]]) -> Path:
    named = path.parent / str(raw.get("imagePath", "")).replace("\\", "/")
    if named.is_file():
        return named
    of_name = images.get(path.stem, [])
    found = [image for image in of_name if image.parent == path.parent] or of_name
    if len(found) != 1:
        raise DataError(
            f"its image {raw.get('imagePath')!r} does not exist, and {len(found)} images are "
            f"called {path.stem}; put the image beside the JSON file"
        )
    return found[0]


def _objects(
    path: Path, shapes: list[dict[str, Any]], hw: tuple[int, int], source: Source
) -> Iterator[SourceObject]:
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        groups[number if group is None else ("group", group, shape["label"])].append(shape)
    for group in groups.values():
        outlines = []
        for shape in group:
            outline = _outline(shape, hw)
            if outline is None:
                source.leave_out(
                    "object", "no_area", path, f"a {shape.get('shape_type')} has no area"
                )
            else:
                outlines.append(outline)
        if any(isinstance(outline, dict) for outline in outlines):
            yield SourceObject(str(group[0]["label"]), united([_rle(o, hw) for o in outlines]))
        elif outlines:
            yield SourceObject(str(group[0]["label"]), outlines)


def _outline(shape: dict[str, Any], hw: tuple[int, int]) -> list[float] | Rle | None:
    """Return a polygon x, y, x, y, ... or an RLE; None for points and lines."""
    points = shape["points"]
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon" and len(points) >= 3:
        return [float(value) for point in points for value in point]
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[0], points[1] if len(points) == 2 else points[2]
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(edge_x - x, edge_y - y)
        angles = [2 * math.pi * n / _CIRCLE_VERTICES for n in range(_CIRCLE_VERTICES)]
        return [v for a in angles for v in (x + radius * math.cos(a), y + radius * math.sin(a))]
    if kind == "mask":
        return _mask(shape, hw)
    return None


def _rle(outline: list[float] | Rle, hw: tuple[int, int]) -> Rle:
    if isinstance(outline, dict):
        return outline
    return rles_from_polygons([np.reshape(outline, (-1, 2))], hw)[0]


def _mask(shape: dict[str, Any], hw: tuple[int, int]) -> Rle:
    """Place a mask, a PNG in base64, into the image at its first point."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            crop = np.asarray(image.convert("L")) > 0
    except (OSError, binascii.Error) as error:
        raise DataError(f"a mask is no PNG in base64 ({error})") from error
    x, y = (round(value) for value in shape["points"][0])
    whole = np.zeros(hw, dtype=np.uint8)
    place = whole[y : y + crop.shape[0], x : x + crop.shape[1]]
    place[:] = crop[: place.shape[0], : place.shape[1]]
    rles = rles_from_labels(whole)
    if not rles:
        raise DataError("a mask is empty")
    return rles[0]
