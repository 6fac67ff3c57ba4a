"""The preset `auto`: a run that fits the data and needs no network, derived from `tiny`.

Everything follows from the train split: sizes and number of its objects and images, and the values
of some images. So `inspect`, `precompute` and `train` choose the same.
"""

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from polarmask.config.overrides import override
from polarmask.config.presets import AUTO, preset, tiny
from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData, load_coco
from polarmask.data.image_checks import ImageChecks
from polarmask.evaluation.recommend import recommend_for, sample_images, spread

_SMALL_OBJECT = 24
"""Pixels: large images are shrunk until one object in ten is smaller. Three of stride 8."""
_SIDES = (256, 1024)
"""The longer side, in pixels, is not shrunk below the first nor left above the second."""
_STEPS = 400
"""Optimiser steps, about, in which `tiny` learns one category; several get twice as many."""
_FEWEST_EPOCHS = 3
_DECODED_IMAGES = 16


def preset_for(name: str | None, folder: Path) -> RunConfig:
    """Return a preset by name; None is `auto`, the run that fits the COCO folder.

    Raises:
        ConfigError: No such preset.
        DataError: `auto`, and nothing usable in the train split.
    """
    return preset(name) if name not in (None, AUTO) else fit(load_coco(folder, "train"))


def fit(data: CocoData) -> RunConfig:
    """Return the run that fits a loaded split, whose images were read without settings."""
    images = sample_images(data)
    most = max(len(image.annotations) for image in images)
    base = tiny()
    limit = max(base.postprocess.max_instances, 200 * ceil(most / 100))
    config = replace(
        base,
        name=AUTO,
        input=replace(base.input, max_side=_max_side(data)),
        optim=replace(base.optim, epochs=_epochs(data, base.optim.batch_size)),
        postprocess=replace(
            base.postprocess,
            max_instances=limit,
            pre_nms_top_k=max(base.postprocess.pre_nms_top_k, 2 * limit),
        ),
    )
    config = override(config, list(_intensity(data)))
    return replace(recommend_for(data, config), input_settings=()).apply(config)


def describe_auto(config: RunConfig, data: CocoData) -> str:
    """Return in words what `auto` sets besides what `recommend` does."""
    images, optim, pixels = len(data.images), config.optim, config.input
    return (
        f"images of at most {pixels.max_side} px; input.intensity={pixels.intensity}"
        f"{f' input.bits={pixels.bits}' if pixels.intensity == 'bit_depth' else ''}; "
        f"{optim.epochs:g} epochs of {images} images, "
        f"{ceil(optim.epochs * images / optim.batch_size)} steps of {optim.batch_size}; "
        f"at most {config.postprocess.max_instances} instances in an image"
    )


def _max_side(data: CocoData) -> int:
    images = sample_images(data)
    sides = [float(np.sqrt(a.area)) for image in images for a in image.annotations if a.parts]
    longest = max(max(image.width, image.height) for image in images)
    least, most = _SIDES
    wanted = longest * _SMALL_OBJECT / float(np.quantile(sides, 0.1))
    return most if wanted >= longest else 32 * ceil(min(max(wanted, least), most) / 32)


def _epochs(data: CocoData, batch_size: int) -> int:
    steps = _STEPS if len(data.categories) == 1 else 2 * _STEPS
    return max(_FEWEST_EPOCHS, ceil(steps * batch_size / len(data.images)))


def _intensity(data: CocoData) -> tuple[str, ...]:
    """Return settings for values of more than 8 bits; of the same images each time."""
    if any(problem.kind == "unknown_intensity" for problem in data.problems):
        return ("input.intensity=percentile",)
    checks = ImageChecks(None, pixels=True)
    for image in spread(data.images, _DECODED_IMAGES):
        checks.check(data.image_path(image), *image.where_and_hw)
    return checks.recommended()
