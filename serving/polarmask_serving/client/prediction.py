"""Prediction: a server's answer about one image as numpy arrays.

Dimension key
    N: instances    K: further parts of an instance    R: rays    V: vertices
    H, W: image rows, columns    h, w: of a crop    2: (x, y) in pixels of the given image
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one image, best score first, in pixels of the image held upright.

    Attributes:
        image_hw: Rows and columns of the image, after its EXIF orientation.
        model: Name and version of the model that answered.
        polygons: (N, R, 2) float32, vertices in ray order (clockwise from +x), clipped; of an
            instance in several parts the best one.
        boxes_xywh: (N, 4) float32, left, top, width, height.
        scores: (N,) float32 in [0, 1].
        category_ids: (N,) int64.
        categories: One name per instance.
        centers: (N, 2) float32, where the rays start; None if not asked for.
        ray_lengths: (N, R) float32, in pixels; None if not asked for.
        further_parts: (K, R, 2) float32 by row, for instances in several parts.
        answer: The server's JSON.
    """

    image_hw: tuple[int, int]
    model: tuple[str, str]
    polygons: NDArray[np.float32]
    boxes_xywh: NDArray[np.float32]
    scores: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    categories: tuple[str, ...]
    centers: NDArray[np.float32] | None
    ray_lengths: NDArray[np.float32] | None
    further_parts: Mapping[int, NDArray[np.float32]]
    answer: Mapping[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    def parts(self, row: int) -> list[NDArray[np.float32]]:
        """Return all polygons (R, 2) of one instance, the best first."""
        return [self.polygons[row], *self.further_parts.get(row, ())]

    def crop(self, row: int) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Return one instance's mask alone: its (top, left) pixel and (h, w) bool.

        A pixel belongs to an instance if its centre lies in one of its polygons.
        """
        parts = self.parts(row)
        vertex_V2 = np.concatenate(parts)
        low_2 = np.floor(vertex_V2.min(axis=0)).astype(int).clip(0, self.image_hw[::-1])
        high_2 = np.ceil(vertex_V2.max(axis=0)).astype(int).clip(low_2, self.image_hw[::-1])
        width, height = (high_2 - low_2).tolist()
        mask_hw = np.zeros((height, width), np.bool_)
        for part_R2 in parts:
            mask_hw |= _fill(part_R2 - low_2, (height, width))
        left, top = low_2.tolist()
        return (top, left), mask_hw

    def masks(self) -> NDArray[np.bool_]:
        """Return (N, H, W) bool; for many instances in a large image `crop` takes less memory."""
        mask_NHW = np.zeros((len(self), *self.image_hw), np.bool_)
        for row in range(len(self)):
            (top, left), crop_hw = self.crop(row)
            height, width = crop_hw.shape
            mask_NHW[row, top : top + height, left : left + width] = crop_hw
        return mask_NHW


def _fill(vertex_V2: NDArray[np.floating[Any]], hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which pixel centres lie in a polygon: an odd number of edges is left of them."""
    height, width = hw
    start_V2, end_V2 = vertex_V2.astype(float), np.roll(vertex_V2, -1, axis=0).astype(float)
    y_H = np.arange(height) + 0.5
    crossed_HV = (start_V2[:, 1] <= y_H[:, None]) != (end_V2[:, 1] <= y_H[:, None])
    row_C, edge_C = crossed_HV.nonzero()
    from_C2, to_C2 = start_V2[edge_C], end_V2[edge_C]
    share_C = (y_H[row_C] - from_C2[:, 1]) / (to_C2[:, 1] - from_C2[:, 1])
    x_C = from_C2[:, 0] + share_C * (to_C2[:, 0] - from_C2[:, 0])
    crossings_HW = np.zeros((height, width + 1), np.int32)
    # The first pixel whose centre is right of the edge.
    np.add.at(crossings_HW, (row_C, np.ceil(x_C - 0.5).clip(0, width).astype(int)), 1)
    inside_HW: NDArray[np.bool_] = crossings_HW.cumsum(axis=1) % 2 == 1
    return inside_HW[:, :width]


def read_prediction(answer: Mapping[str, Any]) -> Prediction:
    """Read a server's JSON about one image.

    Raises:
        KeyError, TypeError, ValueError: It is another server's.
    """
    entries = answer["instances"]
    number = len(entries)
    with_rays = all("rays" in entry for entry in entries)
    polygons = np.array([entry["polygon"] for entry in entries], dtype=np.float32)
    if number and (polygons.ndim != 3 or polygons.shape[1] < 3 or polygons.shape[2] != 2):
        raise ValueError(f"polygons of shape {polygons.shape}")
    return Prediction(
        image_hw=(int(answer["image"]["height"]), int(answer["image"]["width"])),
        model=(str(answer["model"]["name"]), str(answer["model"]["version"])),
        polygons=polygons if number else np.zeros((0, 0, 2), dtype=np.float32),
        boxes_xywh=np.array([entry["bbox"] for entry in entries], np.float32).reshape(number, 4),
        scores=np.array([entry["score"] for entry in entries], dtype=np.float32),
        category_ids=np.array([entry["category_id"] for entry in entries], dtype=np.int64),
        categories=tuple(entry["category"] for entry in entries),
        centers=_rows([e["center"] for e in entries], 2) if with_rays else None,
        ray_lengths=_rows([e["rays"] for e in entries]) if with_rays else None,
        further_parts={
            row: np.array(entry["polygons"][1:], dtype=np.float32)
            for row, entry in enumerate(entries)
            if len(entry.get("polygons", ())) > 1
        },
        answer=answer,
    )


def _rows(values: list[list[float]], columns: int = 0) -> NDArray[np.float32]:
    """Return (N, columns or more) also where there is no row to count columns in."""
    return np.array(values, dtype=np.float32) if values else np.zeros((0, columns), np.float32)
