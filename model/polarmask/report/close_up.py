"""Overlays of one object and its surroundings."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import Annotation
from polarmask.data.images import Pixels
from polarmask.inference.drawing import Shape, draw_shapes

_SIDE = 560
_MARGIN = 0.4
"""Of the object's box, shown around it."""
_SMALLEST_VIEW = 32
"""Pixels of the image."""


def draw_close_up(image: Pixels, annotation: Annotation, shapes: list[Shape]) -> NDArray[np.uint8]:
    """Draw shapes, in pixels of the image, on the part of it around an object; (H, W, 3) RGB."""
    x0, y0, x1, y1 = annotation.bbox
    half = max(x1 - x0, y1 - y0, _SMALLEST_VIEW / (1 + 2 * _MARGIN)) * (0.5 + _MARGIN)
    height, width = image.shape[:2]
    left, top = max(0, int((x0 + x1) / 2 - half)), max(0, int((y0 + y1) / 2 - half))
    right, bottom = int((x0 + x1) / 2 + half) + 1, int((y0 + y1) / 2 + half) + 1
    view = image[top : min(bottom, height), left : min(right, width)]
    origin = np.array([left, top], dtype=np.float64)
    moved = [
        replace(
            shape,
            polygons=tuple(polygon - origin for polygon in shape.polygons),
            center=None if shape.center is None else shape.center - origin,
        )
        for shape in shapes
    ]
    return draw_shapes(view, moved, side=_SIDE)
