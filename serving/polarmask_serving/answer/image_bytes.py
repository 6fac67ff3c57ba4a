"""The bytes of a JPEG or PNG -> pixels; what is too large is refused before a pixel is decoded."""

import io
import struct
import warnings
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from polarmask_serving.errors import (
    DamagedImageError,
    EmptyRequestError,
    ImageTooLargeError,
    NotAnImageError,
)

MAX_PIXELS = 25_000_000
"""Pixels of all images of one request together; a 300 kB PNG can hold 100 million."""
MAX_SIDE = 10_000
"""Pixels of the longer side."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def decode_image(data: object, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Turn the bytes of a JPEG or PNG into an upright image, (H, W, 3) RGB.

    EXIF orientation is applied. Grey is repeated, palettes are looked up, 16 bits lose their lower
    half, CMYK is converted, transparency is dropped: as training reads its images.

    Raises:
        RequestError: Not an image, too large by its header (no pixel is decoded then), damaged.
    """
    if not isinstance(data, bytes | bytearray):
        raise NotAnImageError("send the bytes of a JPEG or PNG file")
    if not data:
        raise EmptyRequestError("the image has no bytes")
    if not data.startswith((_JPEG, _PNG)):
        raise NotAnImageError("only JPEG and PNG are read")
    width, height = _size_by_header(data)
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise ImageTooLargeError(
            f"{width} x {height} pixels: a request may hold {MAX_PIXELS} pixels in all, "
            f"{MAX_SIDE} a side"
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise DamagedImageError("the image can't be decoded") from error
    if image is None:
        raise DamagedImageError("the image breaks off or is damaged")
    return cast(NDArray[np.uint8], image)


def _size_by_header(data: bytes | bytearray) -> tuple[int, int]:
    """Return (width, height) without decoding a pixel."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of what we refuse right after.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(f"more than {MAX_PIXELS} pixels") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, struct.error) as error:
        raise DamagedImageError("the image's header can't be read") from error
    if data.startswith(_PNG) and (width, height) != struct.unpack(">II", data[16:24]):
        # Pillow believes the last of several headers and OpenCV the first.
        raise DamagedImageError("the image has two headers that disagree")
    return width, height
