"""Settings that fit data: strides, level ranges and ray count from the sizes of its objects.

Dimension key
    G: objects
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite, log2
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from polarmask.config.overrides import override
from polarmask.config.settings import RunConfig
from polarmask.data.coco import Annotation, CocoData, ImageRecord
from polarmask.data.preprocess import input_scale
from polarmask.errors import ConfigError
from polarmask.evaluation.exact_rays import draw_from_rays

Item = TypeVar("Item")

RAY_COUNTS = (18, 36, 72)

_ENOUGH_IOU = 0.035
"""A smaller gain is not worth more rays: on COCO, 72 gain .015 over 36 and train no better."""
_FEWEST_LEVELS = 3
"""Fewer would drop the deeper stages of the backbone, which see an object's surroundings."""
_STRIDES_PER_OBJECT = 3
"""A small object should be at least this many locations wide, or its positives are few."""
_FEWEST_STRIDES = 2
"""Objects that resizing leaves narrower, in strides of the finest level, are hardly learned."""
_MANY = 0.1
"""Share of the objects above which that is worth a warning."""
_RANGE_STRIDES = 8
"""A level learns objects up to this many of its strides from the location, as published."""
_SAMPLED_IMAGES = 100
"""Sizes of objects are taken from so many images, evenly spread: more change nothing."""
_SAMPLED_SIZES = 2000
"""Objects of each, at most, whose sizes count: a slide holds many thousand."""
_SAMPLED_OBJECTS = 10
"""Objects of each, at most, that are redrawn from rays."""


@dataclass(frozen=True)
class Recommendation:
    """Settings that fit the sizes of the objects."""

    strides: tuple[int, ...]
    level_ranges: tuple[tuple[float, float], ...]
    num_rays: int
    reason: str
    input_settings: tuple[str, ...] = ()
    """For the values of the pixels."""

    def overrides(self) -> list[str]:
        """Return the settings as `--set` takes them."""
        ranges = ",".join(
            f"[{low:g},{f'{high:g}' if isfinite(high) else 'Infinity'}]"
            for low, high in self.level_ranges
        )
        return [
            f"model.strides=[{','.join(map(str, self.strides))}]",
            f"labels.level_ranges=[{ranges}]",
            f"model.num_rays={self.num_rays}",
            *self.input_settings,
        ]

    def apply(self, config: RunConfig) -> RunConfig:
        """Return the run with these settings."""
        return override(config, self.overrides())


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` items evenly spread over a sequence, from the first on; all if fewer."""
    if len(items) <= number:
        return list(items)
    return [items[index * len(items) // number] for index in range(number)]


def sample_images(data: CocoData) -> list[ImageRecord]:
    """Return the images, evenly spread, that settings are chosen by; some have objects.

    Of the objects of each, many enough are kept.
    """
    sample = [_thinned(image) for image in spread(data.images, _SAMPLED_IMAGES)]
    if any(map(_objects, sample)):
        return sample
    with_objects = [_thinned(image) for image in data.images if _objects(image)]
    return spread(with_objects, _SAMPLED_IMAGES)


def _thinned(image: ImageRecord) -> ImageRecord:
    return replace(image, annotations=tuple(spread(_objects(image), _SAMPLED_SIZES)))


def _objects(image: ImageRecord) -> list[Annotation]:
    return [annotation for annotation in image.annotations if annotation.parts]


def object_side(image: ImageRecord, annotation: Annotation, config: RunConfig) -> float:
    """Return the square root of an object's area in pixels of the network's input."""
    scale_2 = input_scale((image.height, image.width), config.input)
    return float(np.sqrt(annotation.area * scale_2.prod()))


def shrink_warning(data: CocoData, config: RunConfig) -> str:
    """Return in words that resizing leaves many objects too small to learn; empty if not."""
    least = _FEWEST_STRIDES * config.model.strides[0]
    objects = [(image, each) for image in sample_images(data) for each in _objects(image)]
    lost = sum(
        object_side(image, each, config) < least <= float(np.sqrt(each.area))
        for image, each in objects
    )
    if lost <= _MANY * len(objects):
        return ""
    images = config.input
    side = images.short_side or min(512, images.max_side)
    takes_crops = config.labels.mode == "exact" and images.keep_ratio
    crops = f", or learn crops of the images as they are: --set input.crop={side}"
    return (
        f"input.max_side {images.max_side} (or short_side) shrinks {lost / len(objects):.0%}"
        f" of the objects below {least} px, which stride {config.model.strides[0]} hardly learns; "
        f"use --preset auto{crops if takes_crops else ''}"
    )


def _reach(image: ImageRecord, annotation: Annotation, config: RunConfig) -> float:
    """Return the distance from the middle of the box to its farthest side, network pixels."""
    x0, y0, x1, y1 = annotation.bbox
    scale_2 = input_scale((image.height, image.width), config.input)
    return float((np.array([x1 - x0, y1 - y0]) * scale_2).max() / 2)


def recommend_for(data: CocoData, config: RunConfig) -> Recommendation:
    """Choose settings for a split with at least one object, at the input size of a run.

    The same for the same annotations and images, wherever and however often it is called.
    """
    images = sample_images(data)
    objects = [(image, annotation) for image in images for annotation in _objects(image)]
    few = [
        replace(image, annotations=tuple(spread(_objects(image), _SAMPLED_OBJECTS)))
        for image in images
    ]
    part = replace(data, images=tuple(few))
    mean_iou = {}
    for num_rays in RAY_COUNTS:
        if _can_run(config, num_rays):
            _, iou_of = draw_from_rays(part, num_rays, config.labels.parts)
            mean_iou[num_rays] = float(np.mean(list(iou_of.values())))
    found = recommend(
        np.array([object_side(image, a, config) for image, a in objects]),
        np.array([_reach(image, a, config) for image, a in objects]),
        mean_iou,
    )
    return replace(found, input_settings=data.input_settings)


def _can_run(config: RunConfig, num_rays: int) -> bool:
    """Return whether the run allows this ray count: quarter turns need a multiple of 4."""
    try:
        replace(config, model=replace(config.model, num_rays=num_rays))
    except ConfigError:
        return False
    return True


def recommend(
    side_G: NDArray[np.float64], reach_G: NDArray[np.float64], mean_iou: Mapping[int, float]
) -> Recommendation:
    """Choose strides, ranges and ray count that fit the objects.

    The finest stride puts at least three locations across nine of ten objects. Levels are added
    until the last but one reaches nearly all objects. The ray count is the smallest one with a
    mask IoU close to that of the largest.

    Args:
        side_G: Square root of area in pixels of the network's input.
        reach_G: Half the longer box side, in the same pixels.
        mean_iou: Of objects redrawn from exact rays, by ray count, the largest last.
    """
    small, far = float(np.quantile(side_G, 0.1)), float(np.quantile(reach_G, 0.95))
    finest = next((s for s in (16, 8, 4) if s * _STRIDES_PER_OBJECT <= small), 2)
    levels = min(5, max(_FEWEST_LEVELS, ceil(log2(max(far, 1) / (finest * _RANGE_STRIDES))) + 1))
    strides = tuple(finest * 2**level for level in range(levels))
    highs = [*(float(stride * _RANGE_STRIDES) for stride in strides[:-1]), float("inf")]
    lows = [0.0, *highs[:-1]]
    best = list(mean_iou.values())[-1]
    rays = next(number for number, iou in mean_iou.items() if iou >= best - _ENOUGH_IOU)
    reason = (
        f"one object in ten is smaller than {small:.0f} px and one in twenty reaches farther than "
        f"{far:.0f} px from its middle; exact rays fit with a mean IoU of "
        + ", ".join(f"{iou:.3f} ({number})" for number, iou in mean_iou.items())
    )
    return Recommendation(strides, tuple(zip(lows, highs, strict=True)), rays, reason)
