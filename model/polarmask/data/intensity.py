"""Pixel values to 0..255: the same in training, evaluation and serving, as `input.intensity` says.

Files with 8 bits per channel keep their values but for `percentile`.
"""

import logging
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from polarmask.config.input_settings import InputConfig
from polarmask.data.images import Pixels
from polarmask.errors import DataError

logger = logging.getLogger(__name__)

_SPARE_BITS = 2
"""Values that leave more bits than this unused are nearly black."""
_PERCENTILES = (1.0, 99.8)
_SAMPLED = 2**18
"""Pixels, about, that percentiles are taken from: more change nothing."""


def to_uint8(image_HW3: Pixels, config: InputConfig) -> NDArray[np.uint8]:
    """Turn an image's values into 0..255, the scale of the network's mean and deviation.

    Raises:
        DataError: The values may mean any brightness, and the setting does not say which.
    """
    if config.intensity == "percentile":
        return stretched(image_HW3)
    if image_HW3.dtype == np.uint8:
        return np.asarray(image_HW3, dtype=np.uint8)
    reason = lacks_range(str(image_HW3.dtype), config)
    if reason:
        raise DataError(f"the image holds {reason}")
    white = 2**config.bits - 1
    return np.asarray(image_HW3.clip(0, white).astype(np.uint16) >> (config.bits - 8), np.uint8)


def lacks_range(values: str, config: InputConfig) -> str:
    """Return why the setting can't turn values of this type into 0..255; empty if it can."""
    kind = {"float32": "floating point values", "int32": "32-bit integers"}.get(values)
    if (
        kind is None
        or config.intensity == "percentile"
        or (values == "int32" and config.intensity == "bit_depth")
    ):
        return ""
    return (
        f"{kind} and does not say which is white; train with --set input.intensity=percentile, "
        "or save it with 8 or 16 bits per channel"
    )


def fitting_bits(highest: int, config: InputConfig) -> int | None:
    """Return the bits that values up to `highest` use, 8 or more; None if the setting's fit."""
    needed = max(8, highest.bit_length())
    fits = config.intensity == "percentile" or config.bits - _SPARE_BITS < needed <= config.bits
    return None if fits else needed


def warn_of_unfitting_bits(image_HW3: Pixels, config: InputConfig) -> None:
    """Log, once for each number of bits, that an image uses others than the setting expects."""
    if image_HW3.dtype == np.uint16:
        used = fitting_bits(int(image_HW3.max()), config)
        if used is not None:
            _warn(used, config.bits)


@lru_cache
def _warn(used: int, expected: int) -> None:
    logger.warning(
        "an image uses %d bits and the model expects %d (its input.intensity): the network sees "
        "it nearly %s",
        used,
        expected,
        "black" if used < expected else "white",
    )


def shown(image_HW3: Pixels) -> NDArray[np.uint8]:
    """Return an image as people look at it: values of more than 8 bits are stretched."""
    if image_HW3.dtype == np.uint8:
        return np.asarray(image_HW3, dtype=np.uint8)
    return stretched(image_HW3)


def brightness_range(image_HW3: Pixels) -> float:
    """Return the range between the percentiles that `stretched` uses, in the channel with most."""
    step = _sampling_step(image_HW3)
    low_3, high_3 = np.nanpercentile(image_HW3[::step, ::step], _PERCENTILES, axis=(0, 1))
    return float((high_3 - low_3).max())


def _sampling_step(image_HW3: Pixels) -> int:
    return max(1, math.isqrt(image_HW3.shape[0] * image_HW3.shape[1] // _SAMPLED))


def stretched(image_HW3: Pixels) -> NDArray[np.uint8]:
    """Map each channel's 1st percentile to 0 and its 99.8th to 255; NaN becomes 0."""
    result = np.zeros(image_HW3.shape, dtype=np.uint8)
    step = _sampling_step(image_HW3)
    for channel in range(image_HW3.shape[2]):
        plane = image_HW3[:, :, channel].astype(np.float32)
        sample = plane[::step, ::step]
        finite = sample[np.isfinite(sample)]
        if not finite.size:
            continue
        low, high = np.percentile(finite, _PERCENTILES)
        if high <= low:  # nearly all is background
            high = plane.max(where=np.isfinite(plane), initial=low)
        if high <= low:
            continue
        plane -= np.float32(low)
        plane *= np.float32(255 / (high - low))
        np.nan_to_num(plane, copy=False, nan=0.0)
        np.clip(plane, 0, 255, out=plane)
        result[:, :, channel] = np.rint(plane, out=plane)
    return result
