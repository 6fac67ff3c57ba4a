"""One image's annotations to what the network should learn from it at the run's input size.

Dimension key
    G: objects of the image    P: positive locations    R: rays    I: ignored locations
    V: contour points    L: all locations    2: (x, y) in pixels    4: x0, y0, x1, y1
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from polarmask.config.settings import RunConfig
from polarmask.data.coco import Annotation, ImageRecord
from polarmask.data.preprocess import canvas_hw, resized_hw
from polarmask.geometry import masks
from polarmask.geometry.outlines import polygon_area
from polarmask.geometry.rays import Polygons, decode_rays
from polarmask.labels.compiled_targets import assign_native
from polarmask.labels.store import ImageLabels
from polarmask.labels.symmetry import Symmetry, apply_to_labels, apply_to_pixels
from polarmask.labels.targets import all_locations, assign_batch, assign_original, level_points
from polarmask.original.rays import largest_contour, mass_center

_ORIGINAL_MIN_AREA = 15
"""Objects of so many square pixels of the given image or less are background in the original."""
_ORIGINAL_MIN_SIDE = 10
"""So are objects narrower and lower than this, in pixels of the given image."""


_Assigned = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""location_P3, object_P and ray_PR of one image; object_P counts outlines."""


def label_image(record: ImageRecord, config: RunConfig) -> ImageLabels:
    """Return what one image teaches and how well its labels fit, for the label store."""
    return label_images([record], config)[0]


def label_images(
    records: Sequence[ImageRecord], config: RunConfig, device: str | None = None
) -> list[ImageLabels]:
    """Return what images teach and how well their labels fit, for the label store.

    Args:
        records: The images.
        config: Strides, rays, input size and label rules.
        device: Where torch takes all images at once; None takes one after the other in compiled
            code on the CPU, which the original's label rules always do.
    """
    if config.labels.mode == "original":
        made = [_label_as_original(record, config, Symmetry()) for record in records]
        pairs = [(labels, labels.object_P) for labels in made]
    elif device is None:
        pairs = [_label_exactly(record, config) for record in records]
    else:
        teaching = [_Teaching.of(record, config) for record in records]
        assigned = _assign_together(teaching, config, device)
        pairs = [
            _put_together(*each, config) for each in zip(records, teaching, assigned, strict=True)
        ]
    return [
        replace(labels, iou_G=_reached_iou(labels, shape_P, record, config))
        for (labels, shape_P), record in zip(pairs, records, strict=True)
    ]


def label_view(record: ImageRecord, config: RunConfig, symmetry: Symmetry) -> ImageLabels:
    """Return what one image teaches when it is mirrored; `iou_G` is 0: nobody trains on it."""
    if config.labels.mode == "original":
        return _label_as_original(record, config, symmetry)
    return apply_to_labels(_label_exactly(record, config)[0], symmetry, config.model.strides)


@dataclass(frozen=True)
class _Teaching:
    """What an image has to teach: its learned objects' outlines in pixels of the network's input.

    An object may teach several outlines, its parts.
    """

    canvas: tuple[int, int]
    objects: list[Annotation]
    shapes: list[list[NDArray[np.float32]]]

    @classmethod
    def of(cls, record: ImageRecord, config: RunConfig) -> "_Teaching":
        content_hw = resized_hw((record.height, record.width), config.input)
        canvas = canvas_hw(content_hw, config.model.strides, config.input.multiple)
        scale_2 = _scale(record, config)
        objects = [a for a in record.annotations if _is_learned(a, scale_2, config)]
        return cls(canvas, objects, [_shapes(a, scale_2, config) for a in objects])

    @property
    def outlines(self) -> list[NDArray[np.float32]]:
        return [part for parts in self.shapes for part in parts]


def _label_exactly(record: ImageRecord, config: RunConfig) -> tuple[ImageLabels, NDArray[np.int64]]:
    """Return labels and for each positive the outline it decodes to."""
    teaching = _Teaching.of(record, config)
    assigned = assign_native(
        teaching.outlines, teaching.canvas, model=config.model, labels=config.labels
    )
    return _put_together(record, teaching, assigned, config)


def _assign_together(
    teaching: list[_Teaching], config: RunConfig, device: str
) -> Iterator[_Assigned]:
    """Assign the locations of all images at once on a device."""
    outlines = [[torch.from_numpy(part) for part in one.outlines] for one in teaching]
    image_G = torch.arange(len(outlines)).repeat_interleave(
        torch.tensor([len(own) for own in outlines])
    )
    found = assign_batch(
        Polygons.from_vertices([part for own in outlines for part in own]).to(device),
        image_G.to(device),
        torch.tensor([one.canvas for one in teaching], device=device),
        model=config.model,
        labels=config.labels,
    )
    object_P = found.object_P.cpu()
    image_P = image_G[object_P].numpy()
    location_P3, ray_PR = found.location_P3.cpu().numpy(), found.ray_PR.cpu().numpy()
    first = 0
    for image, own in enumerate(outlines):
        chosen = slice(*np.searchsorted(image_P, [image, image + 1]))
        yield location_P3[chosen], object_P.numpy()[chosen] - first, ray_PR[chosen]
        first += len(own)


def _put_together(
    record: ImageRecord, teaching: _Teaching, assigned: _Assigned, config: RunConfig
) -> tuple[ImageLabels, NDArray[np.int64]]:
    location_P3, shape_P, ray_PR = assigned
    owner_S = np.array([row for row, parts in enumerate(teaching.shapes) for _ in parts], np.int64)
    boxes = [(part.min(axis=0), part.max(axis=0)) for part in map(np.concatenate, teaching.shapes)]
    taught = {annotation.id for annotation in teaching.objects}
    ignored = [a for a in record.annotations if a.id not in taught]
    labels = ImageLabels(
        image_id=record.id,
        canvas_hw=teaching.canvas,
        location_P3=location_P3,
        object_P=owner_S[shape_P],
        ray_PR=ray_PR,
        category_G=np.array([a.category for a in teaching.objects], dtype=np.int64),
        box_G4=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        annotation_G=np.array([a.id for a in teaching.objects], dtype=np.int64),
        iou_G=np.zeros(len(teaching.objects), dtype=np.float32),
        ignored_I3=_ignored_locations(ignored, location_P3, record, teaching.canvas, config),
    )
    return labels, shape_P


def _scale(record: ImageRecord, config: RunConfig) -> NDArray[np.float64]:
    """Return pixels of the network's input per pixel of the image, (x, y)."""
    rows, columns = resized_hw((record.height, record.width), config.input)
    return np.array([columns / record.width, rows / record.height])


def _is_learned(annotation: Annotation, scale_2: NDArray[np.float64], config: RunConfig) -> bool:
    area = annotation.area * float(scale_2.prod())
    return not annotation.crowd and area >= config.labels.min_area


def _shapes(
    annotation: Annotation, scale_2: NDArray[np.float64], config: RunConfig
) -> list[NDArray[np.float32]]:
    """Return the outlines that an object teaches, in pixels of the network's input."""
    parts = [part * scale_2 for part in annotation.parts]
    if config.labels.parts == "all":
        parts = [p for p in parts if polygon_area(p) >= config.labels.min_area] or parts[:1]
    else:
        parts = parts[:1]
    return [part.astype(np.float32) for part in parts]


def _label_as_original(record: ImageRecord, config: RunConfig, symmetry: Symmetry) -> ImageLabels:
    content_hw = resized_hw((record.height, record.width), config.input)
    canvas = canvas_hw(content_hw, config.model.strides, config.input.multiple)
    moved_canvas = canvas[::-1] if symmetry.transpose else canvas
    scale_2 = _scale(record, config)
    objects, contours, boxes = [], [], []
    for annotation in record.annotations:
        contour_V2 = _original_contour(annotation, record, content_hw)
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


def _original_contour(
    annotation: Annotation, record: ImageRecord, content_hw: tuple[int, int]
) -> NDArray[np.int64]:
    """Return the contour (V, 2) that an object has after resizing; (0, 2) if it is dropped.

    The original stops with an IndexError where resizing leaves no pixel; here that drops, too.
    """
    nothing = np.zeros((0, 2), dtype=np.int64)
    x0, y0, x1, y1 = annotation.bbox
    speck = x1 - x0 < _ORIGINAL_MIN_SIDE and y1 - y0 < _ORIGINAL_MIN_SIDE
    if annotation.crowd or speck or annotation.area <= _ORIGINAL_MIN_AREA:
        return nothing
    rle = masks.rle_from_segmentation(annotation.segmentation, (record.height, record.width))
    if masks.rle_area(rle) < _ORIGINAL_MIN_AREA:
        return nothing
    bitmap = masks.bitmap_from_rle(rle).astype(np.uint8)
    resized = cv2.resize(bitmap, content_hw[::-1], interpolation=cv2.INTER_NEAREST)
    return largest_contour(np.asarray(resized, dtype=np.uint8))


def _reached_iou(
    labels: ImageLabels, shape_P: NDArray[np.int64], record: ImageRecord, config: RunConfig
) -> NDArray[np.float32]:
    """Decode each shape from its positive with the longest shortest ray and compare masks."""
    iou_G = np.zeros(len(labels.category_G), dtype=np.float32)
    center_P2 = level_points(torch.from_numpy(labels.location_P3), config.model.strides)
    polygon_PR2 = decode_rays(center_P2, torch.from_numpy(labels.ray_PR)).numpy()
    polygon_PR2 = polygon_PR2 / _scale(record, config)
    shortest_P = labels.ray_PR.min(axis=1, initial=np.inf)
    best: dict[int, int] = {}
    for positive, shape in enumerate(shape_P.tolist()):
        if shape not in best or shortest_P[positive] > shortest_P[best[shape]]:
            best[shape] = positive
    chosen = np.array([*best.values()], dtype=np.int64)
    image_hw = (record.height, record.width)
    rasterise = masks.RASTERS["whole_pixels" if config.labels.mode == "original" else "exact"]
    decoded = rasterise(polygon_PR2[chosen], image_hw)
    annotations = {annotation.id: annotation for annotation in record.annotations}
    for owner in np.unique(labels.object_P).tolist():
        rles = [decoded[row] for row in np.flatnonzero(labels.object_P[chosen] == owner)]
        annotation = annotations[int(labels.annotation_G[owner])]
        truth = masks.rle_from_segmentation(annotation.segmentation, image_hw)
        iou_G[owner] = masks.rle_iou([masks.united(rles)], [truth])[0, 0]
    return iou_G


def _ignored_locations(
    ignored: list[Annotation],
    claimed_P3: NDArray[np.int64],
    record: ImageRecord,
    canvas: tuple[int, int],
    config: RunConfig,
) -> NDArray[np.int64]:
    """Return locations inside crowd regions and specks that no object claims."""
    if not ignored:
        return np.zeros((0, 3), dtype=np.int64)
    location_L3 = all_locations(canvas, config.model.strides)
    point_L2 = level_points(location_L3, config.model.strides).numpy() / _scale(record, config)
    pixel_L2 = point_L2.astype(np.int64)
    on_image_L = (pixel_L2 < (record.width, record.height)).all(axis=1)
    covered_L = np.zeros(len(pixel_L2), dtype=bool)
    for annotation in ignored:
        rle = masks.rle_from_segmentation(annotation.segmentation, (record.height, record.width))
        bitmap = masks.bitmap_from_rle(rle)
        covered_L[on_image_L] |= bitmap[pixel_L2[on_image_L, 1], pixel_L2[on_image_L, 0]]
    claimed = {tuple(location) for location in claimed_P3.tolist()}
    return np.array(
        [p for p in location_L3.numpy()[covered_L].tolist() if tuple(p) not in claimed],
        dtype=np.int64,
    ).reshape(-1, 3)
