"""The preset `auto`: a run that fits the data and needs no network, derived from `tiny`.

Everything follows from the train split: sizes and number of its objects and images, and the values
of some images. So `inspect`, `precompute` and `train` choose the same.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from polarmask.config.input_settings import InputConfig
from polarmask.config.overrides import override
from polarmask.config.presets import AUTO, preset, tiny
from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData, ImageRecord, load_coco
from polarmask.data.crop import count_crops
from polarmask.data.image_checks import ImageChecks
from polarmask.data.images import read_image
from polarmask.data.intensity import brightness_range
from polarmask.errors import DataError
from polarmask.evaluation.recommend import recommend_for, sample_images, spread
from polarmask.system.progress_bar import progress_bar

_SMALL_OBJECT = 24
"""Pixels: large images are shrunk until one object in ten is smaller. Three of stride 8."""
_SIDES = (256, 1024)
"""The longer side, in pixels, is not shrunk below the first nor left above the second."""
_MUCH_LARGER = 1.25
"""Images that are still so many times larger, when shrunk, are taken in crops."""
_CROPS = (512, 1024)
"""Sides of crops, in pixels of the network's input: four times a large object, within these."""
_WIDE = 64
"""Channels of networks that are coarser than `tiny`: what is wide must not be fine, too."""
_LARGEST_CROP, _MOST_CANDIDATES = 16_384, 100_000
"""What the settings allow: pixels, and candidates of a level."""
_STEPS = 800
"""Optimiser steps, about, in which `tiny` learns one category; several get twice as many."""
_FEWEST_EPOCHS = 3
"""Of whole images; of crops one, because neighbours are alike."""
_COUNTED_IMAGES = 100
_DECODED_IMAGES = 16
_QUICKLY_DECODED = 16_000_000
"""Pixels."""
_DIFFERENT = 2
"""Where one image in ten has so many times the range of brightness of another one in ten, each is
stretched on its own (docs/explanation/what-we-learned.md, mixed microscopy)."""


def preset_for(name: str | None, folder: Path) -> RunConfig:
    """Return a preset by name; None is `auto`, the run that fits the COCO folder.

    Raises:
        ConfigError: No such preset.
        DataError: `auto`, and nothing usable in the train split.
    """
    return preset(name) if name not in (None, AUTO) else fit(load_coco(folder, "train"))


def fit(data: CocoData) -> RunConfig:
    """Return the run that fits a loaded split, whose images were read without settings."""
    base = tiny()
    max_side, crop = _sizes(sample_images(data))
    images = replace(base.input, max_side=max_side, crop=crop)
    most = max(_most_objects(image, crop) for image in spread(data.images, _COUNTED_IMAGES))
    limit = min(max(base.postprocess.max_instances, 200 * ceil(most / 100)), _MOST_CANDIDATES // 2)
    config = replace(
        base,
        name=AUTO,
        input=images,
        optim=replace(base.optim, epochs=_epochs(data, images, base.optim.batch_size)),
        postprocess=replace(
            base.postprocess,
            max_instances=limit,
            pre_nms_top_k=max(base.postprocess.pre_nms_top_k, 2 * limit),
        ),
    )
    config = override(config, list(_intensity(data)))
    config = replace(recommend_for(data, config), input_settings=()).apply(config)
    if config.model.strides[0] == base.model.strides[0]:
        return config
    return replace(config, model=replace(config.model, channels=_WIDE))


def describe_auto(config: RunConfig, data: CocoData) -> str:
    """Return in words what `auto` sets besides what `recommend` does."""
    images, optim, pixels = _number_seen(data, config.input), config.optim, config.input
    size = f"of at most {pixels.max_side} px" if not pixels.crop else _crops_size(pixels)
    what = f"{images} crops" if pixels.crop else f"{images} images"
    return (
        f"images {size}; input.intensity={pixels.intensity}"
        f"{f' input.bits={pixels.bits}' if pixels.intensity == 'bit_depth' else ''}; "
        f"{optim.epochs:g} epochs of {what}, "
        f"{ceil(optim.epochs * images / optim.batch_size)} steps of {optim.batch_size}; "
        f"at most {config.postprocess.max_instances} instances in "
        f"{'a crop' if pixels.crop else 'an image'}"
    )


def _crops_size(pixels: InputConfig) -> str:
    shrunk = f", shrunk to {pixels.max_side} px" if pixels.max_side < pixels.crop else ""
    return f"in crops of {pixels.crop} px{shrunk}"


def _sizes(images: Sequence[ImageRecord]) -> tuple[int, int]:
    """Return `max_side` and `crop` in pixels; 0 where whole images will do."""
    objects = [annotation for image in images for annotation in image.annotations]
    longest = max(max(image.width, image.height) for image in images)
    small = float(np.quantile([np.sqrt(each.area) for each in objects], 0.1))
    scale = min(1.0, _SMALL_OBJECT / small)
    least, most = _SIDES
    if longest * scale <= most * _MUCH_LARGER:
        return most if scale == 1 else _rounded(min(max(longest * scale, least), most)), 0
    boxes = np.array([each.bbox for each in objects])
    large = float(np.quantile((boxes[:, 2:] - boxes[:, :2]).max(axis=1), 0.95))
    side = _rounded(min(max(4 * large * scale, _CROPS[0]), _CROPS[1]))
    if scale == 1:
        return most, side
    crop = min(round(side / scale), _LARGEST_CROP)
    return _rounded(crop * scale), crop


def _rounded(side: float) -> int:
    return 32 * ceil(side / 32)


def _most_objects(image: ImageRecord, crop: int) -> int:
    """Return how many objects of an image the network sees at once, about."""
    if not (crop and image.annotations):
        return len(image.annotations)
    box_A4 = np.array([each.bbox for each in image.annotations])
    cell_A2 = ((box_A4[:, :2] + box_A4[:, 2:]) / 2 // crop).astype(np.int64)
    return int(np.unique(cell_A2, axis=0, return_counts=True)[1].max())


def _number_seen(data: CocoData, config: InputConfig) -> int:
    """Return how many images or crops an epoch has."""
    if not config.crop:
        return len(data.images)
    return sum(count_crops((image.height, image.width), config) for image in data.images)


def _epochs(data: CocoData, config: InputConfig, batch_size: int) -> int:
    steps = _STEPS if len(data.categories) == 1 else 2 * _STEPS
    fewest = 1 if config.crop else _FEWEST_EPOCHS
    return max(fewest, ceil(steps * batch_size / _number_seen(data, config)))


def _intensity(data: CocoData) -> tuple[str, ...]:
    """Return settings for values of more than 8 bits, and for images of different brightness."""
    if any(problem.kind == "unknown_intensity" for problem in data.problems):
        return ("input.intensity=percentile",)
    checks = ImageChecks(None, pixels=False)  # which decodes those of more than 8 bits
    ranges = []
    for image in progress_bar(spread(data.images, _DECODED_IMAGES), desc="values", unit="image"):
        path = data.image_path(image)
        checks.check(path, *image.where_and_hw)
        if image.width * image.height <= _QUICKLY_DECODED:
            with suppress(DataError):  # an image left out, as the checks of training will say
                ranges.append(brightness_range(read_image(path)))
    if ranges:
        dark, bright = np.quantile(ranges, [0.1, 0.9])
        if bright > _DIFFERENT * dark:
            return ("input.intensity=percentile",)
    return checks.recommended()
