"""The annotations of an image to its labels at the run's input size.

Dimension key
    G: objects of the image    P: positive locations    R: rays    I: ignored locations
    S: shapes (outlines that are learned)    L: all locations    2: (x, y) in pixels
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from polarmask.config.settings import RunConfig
from polarmask.data.coco import Annotation, ImageRecord
from polarmask.data.labels import ImageLabels, apply_to_labels
from polarmask.data.preprocess import canvas_hw, input_scale, learned_hw
from polarmask.geometry import masks
from polarmask.geometry.locations import Grid, level_points
from polarmask.geometry.outlines import polygon_area
from polarmask.geometry.rays import Polygons, decode_rays
from polarmask.geometry.symmetry import Symmetry
from polarmask.labels.compiled_targets import assign_native
from polarmask.labels.targets import assign_batch
from polarmask.original.labels import label_as_original

_Assigned = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""location_P3, shape_P and ray_PR of one image."""

_Labelled = tuple[ImageLabels, NDArray[np.int64]]
"""Labels, and for each positive the shape that it learns."""


def label_image(record: ImageRecord, config: RunConfig) -> ImageLabels:
    """Return the labels of one image and how well they fit, for the label store."""
    return label_images([record], config)[0]


def label_images(
    records: Sequence[ImageRecord], config: RunConfig, device: str | None = None
) -> list[ImageLabels]:
    """Return the labels of images and how well they fit, for the label store.

    Args:
        records: The images.
        config: Strides, rays, input size and label rules.
        device: Where torch takes all images at once; None takes one after the other in compiled
            code on the CPU, which the original's label rules always do.
    """
    rules = _RULES[config.labels.mode]
    return [
        replace(labels, iou_G=_reached_iou(labels, shape_P, record, config, rules.rasterise))
        for record, (labels, shape_P) in zip(
            records, rules.label(records, config, device), strict=True
        )
    ]


def label_view(record: ImageRecord, config: RunConfig, symmetry: Symmetry) -> ImageLabels:
    """Return the labels of one image when it is mirrored or turned; `iou_G` is 0, for speed."""
    return _RULES[config.labels.mode].view(record, config, symmetry)


@dataclass(frozen=True)
class _Rules:
    """How labels are made: one for each value of `labels.mode`."""

    label: Callable[[Sequence[ImageRecord], RunConfig, str | None], Iterable[_Labelled]]
    view: Callable[[ImageRecord, RunConfig, Symmetry], ImageLabels]
    rasterise: Callable[[Iterable[NDArray[np.float64]], tuple[int, int]], list[masks.Rle]]


def _label_exactly(
    records: Sequence[ImageRecord], config: RunConfig, device: str | None
) -> Iterator[_Labelled]:
    all_shapes = [_Shapes.of(record, config) for record in records]
    assigned = (
        _assign_together(all_shapes, config, device) if device else _assign_each(all_shapes, config)
    )
    for record, shapes, found in zip(records, all_shapes, assigned, strict=True):
        yield _put_together(record, shapes, found, config), found[1]


def _view_exactly(record: ImageRecord, config: RunConfig, symmetry: Symmetry) -> ImageLabels:
    [(labels, _)] = _label_exactly([record], config, None)
    return apply_to_labels(labels, symmetry, config.model.strides)


def _label_images_as_original(
    records: Sequence[ImageRecord], config: RunConfig, device: str | None
) -> Iterator[_Labelled]:
    del device  # always on the CPU
    for record in records:
        labels = label_as_original(record, config, Symmetry())
        yield labels, labels.object_P


_RULES = {
    "exact": _Rules(_label_exactly, _view_exactly, masks.rles_from_polygons),
    "original": _Rules(_label_images_as_original, label_as_original, masks.rles_from_whole_pixels),
}


@dataclass(frozen=True)
class _Shapes:
    """The objects of an image that are learned, and their outlines.

    An object has several outlines where all its parts are learned.
    """

    canvas: tuple[int, int]
    objects: list[Annotation]
    outlines: list[list[NDArray[np.float32]]]
    """Of each object, in pixels of the network's input."""

    @classmethod
    def of(cls, record: ImageRecord, config: RunConfig) -> "_Shapes":
        content_hw = learned_hw((record.height, record.width), config.input)
        canvas = canvas_hw(content_hw, config.model.strides, config.input.multiple)
        scale_2 = _scale(record, config)
        objects = [a for a in record.annotations if _is_learned(a, scale_2, config)]
        return cls(canvas, objects, [_outlines(a, scale_2, config) for a in objects])

    @property
    def flat(self) -> list[NDArray[np.float32]]:
        return [outline for own in self.outlines for outline in own]


def _scale(record: ImageRecord, config: RunConfig) -> NDArray[np.float64]:
    return input_scale((record.height, record.width), config.input)


def _is_learned(annotation: Annotation, scale_2: NDArray[np.float64], config: RunConfig) -> bool:
    area = annotation.area * float(scale_2.prod())
    return not annotation.crowd and area >= config.labels.min_area


def _outlines(
    annotation: Annotation, scale_2: NDArray[np.float64], config: RunConfig
) -> list[NDArray[np.float32]]:
    """Return the outlines of an object that are learned, in pixels of the network's input."""
    parts = [part * scale_2 for part in annotation.parts]
    if config.labels.parts == "all":
        parts = [p for p in parts if polygon_area(p) >= config.labels.min_area] or parts[:1]
    else:
        parts = parts[:1]
    return [part.astype(np.float32) for part in parts]


def _assign_each(all_shapes: Sequence[_Shapes], config: RunConfig) -> Iterator[_Assigned]:
    """Assign the locations of one image after the other, on the CPU."""
    for shapes in all_shapes:
        yield assign_native(shapes.flat, shapes.canvas, model=config.model, labels=config.labels)


def _assign_together(
    all_shapes: Sequence[_Shapes], config: RunConfig, device: str
) -> Iterator[_Assigned]:
    """Assign the locations of all images at once on a device."""
    outlines = [[torch.from_numpy(part) for part in one.flat] for one in all_shapes]
    image_G = torch.arange(len(outlines)).repeat_interleave(
        torch.tensor([len(own) for own in outlines])
    )
    found = assign_batch(
        Polygons.from_vertices([part for own in outlines for part in own]).to(device),
        image_G.to(device),
        torch.tensor([one.canvas for one in all_shapes], device=device),
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
    record: ImageRecord, shapes: _Shapes, assigned: _Assigned, config: RunConfig
) -> ImageLabels:
    location_P3, shape_P, ray_PR = assigned
    owner_S = np.array([row for row, own in enumerate(shapes.outlines) for _ in own], np.int64)
    boxes = [(each.min(axis=0), each.max(axis=0)) for each in map(np.concatenate, shapes.outlines)]
    learned = {annotation.id for annotation in shapes.objects}
    ignored = [a for a in record.annotations if a.id not in learned]
    return ImageLabels(
        image_id=record.id,
        canvas_hw=shapes.canvas,
        location_P3=location_P3,
        object_P=owner_S[shape_P],
        ray_PR=ray_PR,
        category_G=np.array([a.category for a in shapes.objects], dtype=np.int64),
        box_G4=np.array(boxes, dtype=np.float32).reshape(-1, 4),
        annotation_G=np.array([a.id for a in shapes.objects], dtype=np.int64),
        iou_G=np.zeros(len(shapes.objects), dtype=np.float32),
        ignored_I3=_ignored_locations(ignored, location_P3, record, shapes.canvas, config),
    )


def _reached_iou(
    labels: ImageLabels,
    shape_P: NDArray[np.int64],
    record: ImageRecord,
    config: RunConfig,
    rasterise: Callable[[Iterable[NDArray[np.float64]], tuple[int, int]], list[masks.Rle]],
) -> NDArray[np.float32]:
    """Return the mask IoU (G,) that labels reach when decoded; 0 for objects without a location.

    Each shape is decoded from its positive whose minimum ray is largest.
    """
    iou_G = np.zeros(len(labels.category_G), dtype=np.float32)
    best_S = _best_positives(labels.ray_PR, shape_P)
    location_S3 = torch.from_numpy(labels.location_P3[best_S])
    center_S2 = level_points(location_S3, config.model.strides)
    polygon_SR2 = decode_rays(center_S2, torch.from_numpy(labels.ray_PR[best_S])).numpy()
    image_hw = (record.height, record.width)
    rles = rasterise(polygon_SR2 / _scale(record, config), image_hw)
    annotations = {annotation.id: annotation for annotation in record.annotations}
    object_S = labels.object_P[best_S]
    for owner in np.unique(object_S).tolist():
        decoded = masks.united([rles[shape] for shape in np.flatnonzero(object_S == owner)])
        annotation = annotations[int(labels.annotation_G[owner])]
        truth = masks.rle_from_segmentation(annotation.segmentation, image_hw)
        iou_G[owner] = masks.rle_iou([decoded], [truth])[0, 0]
    return iou_G


def _best_positives(ray_PR: NDArray[np.float32], shape_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each shape with positives the one whose minimum ray is largest."""
    minimum_P = ray_PR.min(axis=1, initial=np.inf)
    order_P = np.lexsort([-minimum_P, shape_P])
    _, first_S = np.unique(shape_P[order_P], return_index=True)
    return order_P[first_S]


def _ignored_locations(
    ignored: list[Annotation],
    claimed_P3: NDArray[np.int64],
    record: ImageRecord,
    canvas: tuple[int, int],
    config: RunConfig,
) -> NDArray[np.int64]:
    """Return locations inside crowd regions and specks that no object claims, in their order."""
    inside = [_locations_inside(annotation, record, canvas, config) for annotation in ignored]
    if not inside:
        return np.zeros((0, 3), dtype=np.int64)
    location_I3 = np.unique(np.concatenate(inside), axis=0)
    grid = Grid.of(torch.tensor([canvas]), config.model.strides)
    number_I, number_P = (
        grid.number(torch.from_numpy(each), torch.zeros(len(each)).long()).numpy()
        for each in (location_I3, claimed_P3)
    )
    return np.asarray(location_I3[~np.isin(number_I, number_P)])


def _locations_inside(
    annotation: Annotation, record: ImageRecord, canvas: tuple[int, int], config: RunConfig
) -> NDArray[np.int64]:
    """Return level, row and column (I, 3) of the locations on an annotation's mask."""
    rle = masks.rle_from_segmentation(annotation.segmentation, (record.height, record.width))
    bitmap, corner = masks.crop_from_rle(rle)
    scale_2 = _scale(record, config)
    found = []
    for level, stride in enumerate(config.model.strides):
        # Per axis: the cells whose location lies in the mask's box, and the pixels there.
        cells, pixels = [], []
        for axis in (0, 1):
            low, high = corner[axis], corner[axis] + bitmap.shape[1 - axis]
            first = max(0, int(low * scale_2[axis] / stride) - 1)
            last = min(int(high * scale_2[axis] / stride) + 1, canvas[1 - axis] // stride)
            cell = np.arange(first, last)
            pixel = ((cell + 0.5) * stride / scale_2[axis]).astype(np.int64)
            is_near = (pixel >= low) & (pixel < high)
            cells.append(cell[is_near])
            pixels.append(pixel[is_near] - low)
        row_I, column_I = np.nonzero(bitmap[np.ix_(pixels[1], pixels[0])])
        cell_I2 = np.stack([cells[1][row_I], cells[0][column_I]], axis=1)
        found.append(np.concatenate([np.full((len(cell_I2), 1), level), cell_I2], axis=1))
    return np.concatenate(found)
