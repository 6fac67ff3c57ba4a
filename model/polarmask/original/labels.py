"""The labels of the paper's code: which location learns which object, from masks of whole pixels.

Dimension key
    G: objects of the image    K: candidate (object, location) pairs    P: positive locations
    R: rays    V: contour points    2: (x, y) in pixels    4: x0, y0, x1, y1 in pixels
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polarmask.config.settings import LabelConfig, ModelConfig, RunConfig
from polarmask.data.coco import Annotation, ImageRecord
from polarmask.data.labels import ImageLabels
from polarmask.data.preprocess import canvas_hw, input_scale, resized_hw
from polarmask.geometry import masks
from polarmask.geometry.locations import (
    Assignment,
    Grid,
    in_level_range,
    level_points,
    near_centers,
    smallest_wins,
)
from polarmask.geometry.symmetry import Symmetry, apply_to_pixels
from polarmask.original.rays import binned_rays, largest_contour, mass_center

_MIN_AREA = 15
"""Objects of so many square pixels of the given image or less are background."""
_MIN_SIDE = 10
"""So are objects narrower and lower than this, in pixels of the given image."""


def label_as_original(record: ImageRecord, config: RunConfig, symmetry: Symmetry) -> ImageLabels:
    """Return the labels of one image by the rules of the paper's code; `iou_G` is 0.

    It mirrors and turns masks, not labels: arithmetic in whole pixels sees the difference.
    """
    content_hw = resized_hw((record.height, record.width), config.input)
    canvas = canvas_hw(content_hw, config.model.strides, config.input.multiple)
    moved_canvas = canvas[::-1] if symmetry.transpose else canvas
    scale_2 = input_scale((record.height, record.width), config.input)
    objects, contours, boxes = [], [], []
    for annotation in record.annotations:
        contour_V2 = _contour(annotation, record, content_hw)
        if not len(contour_V2):
            continue
        x0, y0, x1, y1 = annotation.bbox
        # Boxes end on their last pixel, and their corners scale like points.
        corner_22 = np.array([[x0, y0], [x1 - 1, y1 - 1]]) * scale_2
        corner_22 = corner_22.clip(0, np.array(content_hw[::-1]) - 1)
        corner_22 = apply_to_pixels(corner_22, moved_canvas, symmetry)
        boxes.append((corner_22.min(axis=0), corner_22.max(axis=0)))
        contours.append(apply_to_pixels(contour_V2, moved_canvas, symmetry))
        objects.append(annotation)
    box_G4 = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    centers = [mass_center(contour_V2) for contour_V2 in contours]
    found = assign_original(
        [torch.from_numpy(contour_V2) for contour_V2 in contours],
        torch.tensor(centers, dtype=torch.float32),
        torch.from_numpy(box_G4),
        moved_canvas,
        model=config.model,
        labels=config.labels,
    )
    return ImageLabels(
        image_id=record.id,
        canvas_hw=moved_canvas,
        location_P3=found.location_P3.numpy(),
        object_P=found.object_P.numpy(),
        ray_PR=found.ray_PR.numpy(),
        category_G=np.array([a.category for a in objects], dtype=np.int64),
        box_G4=box_G4,
        annotation_G=np.array([a.id for a in objects], dtype=np.int64),
        iou_G=np.zeros(len(objects), dtype=np.float32),
        ignored_I3=np.zeros((0, 3), dtype=np.int64),
    )


def _contour(
    annotation: Annotation, record: ImageRecord, content_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the contour (V, 2) that an object has after resizing; (0, 2) if it is dropped.

    The original stops with an IndexError where resizing leaves no pixel; here that drops, too.
    """
    nothing = np.zeros((0, 2), dtype=np.int64)
    x0, y0, x1, y1 = annotation.bbox
    speck = x1 - x0 < _MIN_SIDE and y1 - y0 < _MIN_SIDE
    if annotation.crowd or speck or annotation.area <= _MIN_AREA:
        return nothing
    rle = masks.rle_from_segmentation(annotation.segmentation, (record.height, record.width))
    if masks.rle_area(rle) < _MIN_AREA:
        return nothing
    bitmap = masks.bitmap_from_rle(rle).astype(np.uint8)
    resized = cv2.resize(bitmap, content_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return largest_contour(np.asarray(resized, dtype=np.uint8))


def assign_original(
    contours: list[Tensor],
    center_G2: Tensor,
    box_G4: Tensor,
    canvas_hw: tuple[int, int],
    *,
    model: ModelConfig,
    labels: LabelConfig,
) -> Assignment:
    """Choose positives as the original does: inside or outside the object, and maybe none.

    Args:
        contours: One (V, 2) tensor of contour pixels per object.
        center_G2: Mass centres in whole pixels, float.
        box_G4: Boxes that end on their last pixel: one less wide and high than ours.
        canvas_hw: Rows and columns of the padded input, multiples of the coarsest stride.
        model: Strides and ray count.
        labels: Radius and level ranges.

    Returns:
        The assignment, ordered by object. It is empty if the first object's mass centre has x 0:
        the original takes that for an image without objects.
    """
    if not contours or center_G2[0, 0] == 0:
        nothing = torch.zeros(0, dtype=torch.long)
        return Assignment(nothing.reshape(0, 3), nothing, torch.zeros(0, model.num_rays))
    canvas_I2 = torch.tensor([canvas_hw])
    location_K3, object_K = near_centers(
        center_G2, canvas_I2.expand(len(center_G2), 2), model.strides, labels.center_radius
    )
    box_K4 = box_G4[object_K]
    fits_K = in_level_range(location_K3, box_K4, model.strides, labels.level_ranges)
    location_K3, object_K = location_K3[fits_K], object_K[fits_K]
    width_G, height_G = (box_G4[:, 2:] - box_G4[:, :2] + 1).T
    number_K = Grid.of(canvas_I2, model.strides).number(location_K3, torch.zeros_like(object_K))
    won_P = smallest_wins(number_K, object_K, width_G * height_G)
    location_P3, object_P = location_K3[won_P], object_K[won_P]
    point_P2 = level_points(location_P3, model.strides)
    ray_PR = binned_rays(point_P2, object_P, contours, model.num_rays)
    return Assignment(location_P3, object_P, ray_PR)
