"""Crops of large images for training: where they lie, and which objects they show.

With `input.crop`, an epoch takes as many crops of an image as fit into its area. Each has a region
of its own to be drawn from, so that an epoch sees all of the image; neighbouring regions overlap.

An object that the border of a crop cuts is learned as what is seen of it: this is what the network
is asked for in tiles, which are joined later (`inference.tiles`). A sliver of it is ignored. It is
no background, and nothing in it says how far the object reaches.

Each crop is resized by its own sides. So with an `input.max_side` below `input.crop`, or with
`input.short_side`, the scale depends on the image: a full crop is shrunk more than an image that is
smaller than a crop. A `max_side` of at least `crop`, without `short_side`, keeps one scale.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from polarmask.config.input_settings import InputConfig
from polarmask.data.coco import Annotation, ImageRecord
from polarmask.data.disk_list import DiskList, DiskListWriter
from polarmask.data.preprocess import crop_hw
from polarmask.geometry.clip import PixelBox, clip_polygon, clip_rle
from polarmask.geometry.masks import Segmentation, main_parts
from polarmask.geometry.outlines import polygon_area
from polarmask.system.progress_bar import progress_bar

_SLIVER = 0.1
"""Share of an object's area below which what a crop shows of it is ignored."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image, of which each epoch sees one crop."""

    record: ImageRecord
    """Of the whole image, with the objects that a crop of the region can show."""
    crop_hw: tuple[int, int]
    """Rows and columns of the crop; those of the image if it is not larger."""
    low: tuple[int, int]
    """Lowest (x, y) of the crop's upper left corner; below 0 it is moved into the image."""
    high: tuple[int, int]
    """Highest (x, y) of it; the same."""

    @classmethod
    def whole(cls, record: ImageRecord) -> "Region":
        """Return the region of an image that is not cropped."""
        return cls(record, (record.height, record.width), (0, 0), (0, 0))

    @property
    def is_whole(self) -> bool:
        """Whether the crop is the image."""
        return self.crop_hw == (self.record.height, self.record.width)

    def draw(self, rng: np.random.Generator) -> PixelBox:
        """Draw the crop's place."""
        rows, columns = self.crop_hw
        drawn_x, drawn_y = rng.integers(self.low, self.high, endpoint=True).tolist()
        x = min(max(drawn_x, 0), self.record.width - columns)
        y = min(max(drawn_y, 0), self.record.height - rows)
        return x, y, x + columns, y + rows


def count_crops(image_hw: tuple[int, int], config: InputConfig) -> int:
    """Return how many crops an epoch takes of an image: as many as have its area, about."""
    rows, columns = crop_hw(image_hw, config)
    return _count(image_hw[0], rows) * _count(image_hw[1], columns)


def crops_text(images: Iterable[ImageRecord], config: InputConfig) -> str:
    """Return in words which images are taken in crops; empty in a run without."""
    if not config.crop:
        return ""
    counts = [count_crops((image.height, image.width), config) for image in images]
    return (
        f"images larger than {config.crop} px are learned in crops of that size, and predicted in "
        f"tiles of it; an epoch takes {sum(counts):,} crops of {len(counts):,} images"
    )


def _count(length: int, side: int) -> int:
    return max(1, round(length / side))


@dataclass(frozen=True, eq=False)
class Regions:
    """The N regions of all images, in their order."""

    on_disk: DiskList[Region]
    """Each with its own objects."""
    crop_hw_N2: NDArray[np.int32]
    """Rows and columns of the crops, which batches are planned by, without their objects."""


def regions_of(images: Iterable[ImageRecord], config: InputConfig) -> Regions:
    """Cut images into regions, each with its own objects.

    Raises:
        DataError: The folder for temporary files is full.
    """
    regions = DiskListWriter[Region]()
    hw: list[tuple[int, int]] = []
    for record in progress_bar(images, desc="crops", unit="image"):
        for region in _regions(record, config):
            regions.add(region)
            hw.append(region.crop_hw)
    return Regions(regions.finish(), np.array(hw, np.int32).reshape(-1, 2))


def _regions(record: ImageRecord, config: InputConfig) -> Iterator[Region]:
    height, width = crop_hw((record.height, record.width), config)
    box_A4 = np.array([each.bbox for each in record.annotations]).reshape(-1, 4)
    for low_y, high_y in _ranges(record.height, height):
        for low_x, high_x in _ranges(record.width, width):
            is_seen_A = (box_A4[:, :2] < (high_x + width, high_y + height)).all(axis=1)
            is_seen_A &= (box_A4[:, 2:] > (low_x, low_y)).all(axis=1)
            seen = tuple(record.annotations[index] for index in np.flatnonzero(is_seen_A))
            yield Region(
                replace(record, annotations=seen), (height, width), (low_x, low_y), (high_x, high_y)
            )


def _ranges(length: int, side: int) -> list[tuple[int, int]]:
    """Return the lowest and highest start of each crop along one axis.

    They reach beyond the image, so that some crops begin at its border. Else what lies there would
    hardly be seen.
    """
    free, count = length - side, _count(length, side)
    beyond = min(side // 8, free // 4)
    ends = [free * n // count for n in range(count + 1)]
    return list(pairwise([-beyond, *ends[1:-1], free + beyond]))


def crop_around(annotation: Annotation, record: ImageRecord, config: InputConfig) -> PixelBox:
    """Return the crop with an object in its middle, or as near to it as the image allows."""
    rows, columns = crop_hw((record.height, record.width), config)
    x0, y0, x1, y1 = annotation.bbox
    x = min(max(round((x0 + x1 - columns) / 2), 0), record.width - columns)
    y = min(max(round((y0 + y1 - rows) / 2), 0), record.height - rows)
    return x, y, x + columns, y + rows


def cropped(record: ImageRecord, box: PixelBox) -> ImageRecord:
    """Return a crop of an image as an image of its own; what it shows of slivers is a crowd."""
    seen = (_seen(annotation, box) for annotation in record.annotations)
    return replace(
        record,
        width=box[2] - box[0],
        height=box[3] - box[1],
        annotations=tuple(each for each in seen if each is not None),
    )


def _seen(annotation: Annotation, box: PixelBox) -> Annotation | None:
    """Return what a crop shows of an object or a crowd; None for nothing."""
    x0, y0, x1, y1 = annotation.bbox
    left, top, right, bottom = box
    if x0 >= right or y0 >= bottom or x1 <= left or y1 <= top:
        return None
    if annotation.crowd:
        return _as_crowd(annotation, _clip(annotation.segmentation, box))
    if x0 >= left and y0 >= top and x1 <= right and y1 <= bottom:
        parts = tuple(part - (left, top) for part in annotation.parts)
        moved = (x0 - left, y0 - top, x1 - left, y1 - top)
        return replace(annotation, parts=parts, segmentation=parts, bbox=moved)
    pieces = [piece for part in annotation.parts for piece in clip_polygon(part, box)]
    areas = [polygon_area(piece) for piece in pieces]
    parts = tuple(pieces[index] for index in main_parts(areas))
    if not parts:
        return None
    if sum(areas) < _SLIVER * sum(map(polygon_area, annotation.parts)):
        return _as_crowd(annotation, parts)
    vertices = np.concatenate(parts)
    low, high = vertices.min(axis=0).tolist(), vertices.max(axis=0).tolist()
    bbox = (low[0], low[1], high[0], high[1])
    return replace(annotation, parts=parts, segmentation=parts, bbox=bbox, area=sum(areas))


def _clip(segmentation: Segmentation, box: PixelBox) -> Segmentation | None:
    if isinstance(segmentation, dict):
        return clip_rle(segmentation, box)
    return tuple(piece for part in segmentation for piece in clip_polygon(part, box))


def _as_crowd(annotation: Annotation, segmentation: Segmentation | None) -> Annotation | None:
    if not segmentation:
        return None
    return replace(annotation, parts=(), segmentation=segmentation, crowd=True)
