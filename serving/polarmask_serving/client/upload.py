"""What a request sends: an image as a file's content, and categories as a header."""

import json
import operator
import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = bytes | bytearray | memoryview | str | PathLike[str] | NDArray[np.generic]
"""A file's content, a file, or pixels: (H, W, 3) RGB or (H, W) grey, uint8 or uint16."""
Category = str | int | np.integer[Any]
"""A name or an id; numpy's integers are ids, too."""


def encode_categories(categories: Category | Sequence[Category]) -> str:
    """Write JSON, as names may hold commas; ASCII, as headers need. One category is a list of one.

    Raises:
        TypeError: Neither names nor whole numbers.
    """
    several = [categories] if isinstance(categories, (str, int, np.integer)) else [*categories]
    return json.dumps([each if isinstance(each, str) else operator.index(each) for each in several])


def encode_image(image: Image) -> bytes:
    """Return the content of an image file; pixels become a PNG.

    Raises:
        OSError: The file can't be read.
        ValueError: The array is no image.
        TypeError: Neither bytes nor a path nor an array.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, (str, PathLike)):
        return Path(image).read_bytes()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is bytes, a path or an array; got {type(image).__name__}")
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim not in (2, 3)
        or image.shape[2:] not in ((), (3,))
        or not image.size
    ):
        raise ValueError(
            "an image is uint8 or uint16, (H, W, 3) RGB or (H, W); "
            f"got {image.dtype}, {image.shape}"
        )
    if image.dtype == np.uint16:
        return _encode_deep(image)
    from PIL import Image as Pillow

    file = BytesIO()
    Pillow.fromarray(image).save(file, "PNG", compress_level=1)  # 1: quick
    return file.getvalue()


def _encode_deep(image: NDArray[np.generic]) -> bytes:
    """Write a PNG with 16 bits per channel, which Pillow can't for colours."""
    rows, columns = image.shape[:2]
    lines = image.astype(">u2", order="C").reshape(rows, -1).view(np.uint8)
    colour_type = 0 if image.ndim == 2 else 2
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 16, colour_type, 0, 0, 0),
        # Each row begins with the number of its filter: none.
        b"IDAT": zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes(), level=1),
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
