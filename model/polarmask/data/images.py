"""Image files to pixels: the only decoder, for training, evaluation and overlays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from polarmask.errors import DataError

# Pillow's decoders raise more than OSError on damaged files.
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)

_WITHOUT_RANGE = {"I": "32-bit integers", "F": "floating point numbers"}
"""Pillow's modes whose values may mean any brightness."""


def read_image(path: Path, *, upright: bool = False) -> NDArray[np.uint8]:
    """Decode an image to (H, W, 3) uint8 RGB, 0 to 255.

    Grey becomes RGB, alpha is dropped, 16 bits become the upper 8.

    Args:
        path: Any format that Pillow reads.
        upright: Turn by the file's EXIF orientation, as people see it; COCO's annotations don't.

    Raises:
        DataError: The file is missing, truncated, no image, or its values have no known range.
    """
    with _opened(path) as image:
        if image.mode in _WITHOUT_RANGE:
            raise DataError(
                f"{path} holds {_WITHOUT_RANGE[image.mode]} (Pillow's mode {image.mode}) and does "
                "not say which is white; save it with 8 or 16 bits per channel"
            )
        if upright:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """Return rows and columns from the file's header, EXIF orientation ignored.

    Raises:
        DataError: The file is missing or no image.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except _DECODE_ERRORS as error:
        raise DataError(f"{path} is no readable image ({error}); replace or remove it") from error
