"""Instances to what people work with: label images, tables, GeoJSON, ImageJ ROIs, COCO results.

Dimension key
    N: instances    2: (x, y) in pixels of the image
"""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.errors import DataError
from polarmask.geometry.masks import crop_from_rle, labels_from_rles
from polarmask.inference.predictor import Instances
from polarmask.system.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class ObjectMeasures:
    """One row of a table of objects; lengths in pixels."""

    object: int
    """Its value in the label image, from 1."""
    category: str
    score: float
    area: int
    """Pixels of the mask."""
    x: float
    """Centroid of the mask; the middle of the first pixel is 0.5."""
    y: float
    diameter: float
    """Of the circle of this area."""
    major_axis: float
    """Of the ellipse with the mask's second moments, as in scikit-image."""
    minor_axis: float
    left: float
    """Box of the instance."""
    top: float
    width: float
    height: float


TABLE_COLUMNS = tuple(field.name for field in fields(ObjectMeasures))


def measure_objects(found: Instances) -> list[ObjectMeasures]:
    """Measure each instance's mask, best score first; one without a pixel has area 0."""
    rows = []
    for number, rle in enumerate(found.rle()):
        crop, corner = crop_from_rle(rle)
        moments = cv2.moments(crop.astype(np.uint8), binaryImage=True)
        area = int(moments["m00"])
        major, minor = _axes(moments) if area else (0.0, 0.0)
        left, top, width, height = found.boxes_xywh[number].tolist()
        x = corner[0] + 0.5 + moments["m10"] / area if area else left + width / 2
        y = corner[1] + 0.5 + moments["m01"] / area if area else top + height / 2
        rows.append(
            ObjectMeasures(
                object=number + 1,
                category=found.category_names[number],
                score=round(float(found.scores[number]), 4),
                area=area,
                x=round(x, 2),
                y=round(y, 2),
                diameter=round(2 * math.sqrt(area / math.pi), 2),
                major_axis=round(major, 2),
                minor_axis=round(minor, 2),
                left=round(left, 2),
                top=round(top, 2),
                width=round(width, 2),
                height=round(height, 2),
            )
        )
    return rows


def _axes(moments: Mapping[str, float]) -> tuple[float, float]:
    """Return the full axes of the ellipse that has the same second moments."""
    # 1/12 is the second moment of a pixel about its own middle.
    xx, yy, xy = (moments[name] / moments["m00"] for name in ("mu20", "mu02", "mu11"))
    middle, half = (xx + yy) / 2 + 1 / 12, math.hypot((xx - yy) / 2, xy)
    return 4 * math.sqrt(middle + half), 4 * math.sqrt(max(middle - half, 0.0))


def label_image(found: Instances) -> NDArray[np.int32]:
    """Return (H, W): 0 for background, n for the n-th instance; the better score wins overlaps."""
    return labels_from_rles(found.rle(), found.image_hw)


def geojson(found: Instances) -> dict[str, Any]:
    """Return a FeatureCollection as QuPath and GIS programs read it, in pixels."""
    features = []
    for row, name in enumerate(found.category_names):
        rings = [[_closed(part)] for part in found.parts(row)]
        single = len(rings) == 1
        features.append(
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon" if single else "MultiPolygon",
                    "coordinates": rings[0] if single else rings,
                },
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": name},
                    "score": round(float(found.scores[row]), 4),
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def _closed(part: NDArray[np.float32]) -> list[list[float]]:
    vertices: list[list[float]] = np.round(part.astype(np.float64), 2).tolist()
    return [*vertices, vertices[0]]


def coco_results(found: Instances, image_id: int) -> list[dict[str, Any]]:
    """Return COCO's results format, one entry per instance, as evaluators read it."""
    return [
        {
            "image_id": image_id,
            "category_id": int(found.category_ids[row]),
            "segmentation": rle,
            "bbox": [round(value, 2) for value in found.boxes_xywh[row].tolist()],
            "score": round(float(found.scores[row]), 6),
        }
        for row, rle in enumerate(found.rle())
    ]


def save_instances(found: Instances, path: Path) -> None:
    """Write instances in the format that the suffix names.

    `.png` and `.tif` are label images, `.csv` a table of objects, `.geojson` polygons, `.json`
    COCO results, `.zip` ImageJ ROIs.

    Raises:
        DataError: Another suffix, or more instances than a PNG can count.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        known = ", ".join(_WRITERS)
        raise DataError(f"{path}: no format is called {path.suffix!r}; choose one of {known}")
    data = write(found)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def _png(found: Instances) -> bytes:
    if len(found) > np.iinfo(np.uint16).max:
        raise DataError(f"a PNG counts to 65,535 and there are {len(found):,} instances; use .tif")
    return _encoded(".png", label_image(found).astype(np.uint16))


def _tif(found: Instances) -> bytes:
    fits = len(found) <= np.iinfo(np.uint16).max
    return _encoded(".tif", label_image(found).astype(np.uint16 if fits else np.int32))


def _encoded(suffix: str, image: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(suffix, image)[1])


def _csv(found: Instances) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, TABLE_COLUMNS)
    writer.writeheader()
    writer.writerows(asdict(row) for row in measure_objects(found))
    return text.getvalue().encode()


def _geojson(found: Instances) -> bytes:
    return json.dumps(geojson(found)).encode()


def _json(found: Instances) -> bytes:
    return json.dumps(coco_results(found, image_id=1)).encode()


def _rois(found: Instances) -> bytes:
    """Return a ZIP with one polygon per part, for ImageJ's ROI manager."""
    import zipfile

    from roifile import ImagejRoi

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for row, category in enumerate(found.category_names):
            for part, polygon in enumerate(found.parts(row)):
                name = f"{row + 1:05}-{part}-{category}" if part else f"{row + 1:05}-{category}"
                roi = ImagejRoi.frompoints(polygon, name=name)
                file.writestr(f"{name.replace('/', '_')}.roi", roi.tobytes())
    return archive.getvalue()


_WRITERS: dict[str, Callable[[Instances], bytes]] = {
    ".png": _png,
    ".tif": _tif,
    ".tiff": _tif,
    ".csv": _csv,
    ".geojson": _geojson,
    ".json": _json,
    ".zip": _rois,
}
