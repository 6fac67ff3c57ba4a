"""The labels of one image: what is stored for training, and how a mirror or a turn moves it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from polarmask.geometry.symmetry import Symmetry, apply_to_pixels, ray_order


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """What the network should learn from one image: objects G, positive locations P, rays R.

    Attributes:
        image_id: COCO image id.
        canvas_hw: Rows and columns of the padded input that the locations belong to.
        location_P3: Level, row, column of each positive, int64.
        object_P: Index of the positive's object, int64.
        ray_PR: Ray lengths in pixels of the network's input, float32, > 0.
        category_G: Category index of each object, int64.
        box_G4: x0, y0, x1, y1 of each object in pixels of the network's input, float32.
        annotation_G: COCO annotation id of each object, int64.
        iou_G: Mask IoU that the labels of each object reach when decoded, float32; 0 without one.
        ignored_I3: Locations that are neither object nor background (crowds, specks).
    """

    image_id: int
    canvas_hw: tuple[int, int]
    location_P3: NDArray[np.int64]
    object_P: NDArray[np.int64]
    ray_PR: NDArray[np.float32]
    category_G: NDArray[np.int64]
    box_G4: NDArray[np.float32]
    annotation_G: NDArray[np.int64]
    iou_G: NDArray[np.float32]
    ignored_I3: NDArray[np.int64]

    def without_locations(self) -> "ImageLabels":
        """Return the labels with their objects only."""
        names = ("location_P3", "object_P", "ray_PR", "ignored_I3")
        return replace(self, **{name: getattr(self, name)[:0] for name in names})


def apply_to_labels(
    labels: ImageLabels, symmetry: Symmetry, strides: tuple[int, ...]
) -> ImageLabels:
    """Transform locations, rays and boxes of a canvas."""
    rows, columns = labels.canvas_hw
    box_G4 = labels.box_G4
    if symmetry.transpose:
        rows, columns = columns, rows
        box_G4 = box_G4[:, [1, 0, 3, 2]]
    if symmetry.flip_x:
        box_G4 = np.stack(
            [columns - box_G4[:, 2], box_G4[:, 1], columns - box_G4[:, 0], box_G4[:, 3]], axis=1
        )
    if symmetry.flip_y:
        box_G4 = np.stack(
            [box_G4[:, 0], rows - box_G4[:, 3], box_G4[:, 2], rows - box_G4[:, 1]], axis=1
        )
    stride = np.asarray(strides)
    level_hw = np.stack([rows // stride, columns // stride], axis=1)
    return replace(
        labels,
        canvas_hw=(rows, columns),
        location_P3=_move(labels.location_P3, symmetry, level_hw),
        ray_PR=labels.ray_PR[:, ray_order(labels.ray_PR.shape[1], symmetry)],
        box_G4=box_G4,
        ignored_I3=_move(labels.ignored_I3, symmetry, level_hw),
    )


def _move(
    location_K3: NDArray[np.int64], symmetry: Symmetry, level_hw: NDArray[np.int64]
) -> NDArray[np.int64]:
    level_K = location_K3[:, 0]
    cell_K2 = apply_to_pixels(location_K3[:, [2, 1]], level_hw[level_K], symmetry)
    return np.concatenate([level_K[:, None], cell_K2[:, ::-1]], axis=1)
