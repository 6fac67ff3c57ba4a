"""Sizes of objects in their masks: the rows of a table of objects."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.geometry.masks import Rle, crop_from_rle


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


def measure_mask(
    rle: Rle, box_xywh: NDArray[np.float32], *, number: int, category: str, score: float
) -> ObjectMeasures:
    """Measure one mask; one without a pixel has area 0.

    Args:
        rle: The mask.
        box_xywh: (4,) left, top, width, height of the instance.
        number: Its value in the label image, from 1.
        category: Name.
        score: In [0, 1].
    """
    crop, corner = crop_from_rle(rle)
    moments = cv2.moments(crop.astype(np.uint8), binaryImage=True)
    area = int(moments["m00"])
    major, minor = _axes(moments) if area else (0.0, 0.0)
    left, top, width, height = box_xywh.tolist()
    x = corner[0] + 0.5 + moments["m10"] / area if area else left + width / 2
    y = corner[1] + 0.5 + moments["m01"] / area if area else top + height / 2
    lengths = {
        "x": x,
        "y": y,
        "diameter": 2 * math.sqrt(area / math.pi),
        "major_axis": major,
        "minor_axis": minor,
        "left": left,
        "top": top,
        "width": width,
        "height": height,
    }
    return ObjectMeasures(
        object=number,
        category=category,
        score=round(score, 4),
        area=area,
        **{name: round(value, 2) for name, value in lengths.items()},
    )


def _axes(moments: Mapping[str, float]) -> tuple[float, float]:
    """Return the full axes of the ellipse that has the same second moments."""
    # 1/12 is the second moment of a pixel about its own middle.
    xx, yy, xy = (moments[name] / moments["m00"] for name in ("mu20", "mu02", "mu11"))
    middle, half = (xx + yy) / 2 + 1 / 12, math.hypot((xx - yy) / 2, xy)
    return 4 * math.sqrt(middle + half), 4 * math.sqrt(max(middle - half, 0.0))
