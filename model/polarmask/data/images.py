"""Image files to pixels: the only decoder, for training, evaluation and overlays."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from polarmask.errors import DataError

# Pillow refuses large images without a way round; `input.max_pixels` is the limit here.
Image.MAX_IMAGE_PIXELS = None

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16 | np.int32 | np.float32]
"""(H, W, 3) RGB as stored: 0 to 255, 0 to 65535, or values that may mean any brightness."""

_ORIENTATION = 0x0112
_ORIENTED_BY = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Keys of Pillow's `info` that an orientation may come from."""
_DEEP_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "LA"}
_INVERSE = {6: 8, 8: 6}
"""Of the orientations that turn by a quarter; each other one undoes itself."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says about its image; no pixel is decoded for it."""

    height: int
    width: int
    """Rows and columns as stored, orientation ignored."""
    values: Literal["uint8", "uint16", "int32", "float32"]
    """Type of the pixels that `read_image` returns."""
    orientation: int | None
    """EXIF orientation, 1 to 8, of which 1 is upright; None if the EXIF data can't be read."""
    pages: bool
    """Whether there are more pages or frames than the first, which is the one that is read."""


def read_image(path: Path, *, upright: bool = False, max_pixels: int | None = None) -> Pixels:
    """Decode an image to (H, W, 3) RGB.

    Grey becomes RGB, alpha is dropped. `polarmask.data.intensity` turns deep values into 8 bits.

    Args:
        path: Any format that Pillow reads; of several pages or frames the first is taken.
        upright: Turn by the file's orientation, as people see it; COCO's annotations don't.
        max_pixels: Larger images are refused before they are decoded; None for no limit.

    Raises:
        DataError: The file is missing, truncated, damaged, too large or no image.
    """
    with opened(path) as image:
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise DataError(too_large(path, pixels, max_pixels))
        # Pillow turns a TIFF when it loads it, and forgets the orientation.
        loads_upright = isinstance(image, TiffImageFile)
        orientation = _orientation(image) if upright or loads_upright else 1
        if orientation is None:
            raise DataError(
                f"{path}: its EXIF data can't be read, so its orientation is unknown; "
                "save the image again without its metadata"
            )
        values, is_deep = _value_type(image), _is_deep_colour(image)
        image.load()
        if not is_deep:
            pixels_HW3 = _to_rgb(image, values)
            if loads_upright:
                pixels_HW3 = _turned(pixels_HW3, _INVERSE.get(orientation, orientation))
    if is_deep:
        pixels_HW3 = _read_deep_colour(path, must_be_upright=loads_upright and orientation != 1)
    return np.ascontiguousarray(_turned(pixels_HW3, orientation) if upright else pixels_HW3)


def read_header(path: Path) -> ImageHeader:
    """Return what a file's header says.

    Raises:
        DataError: The file is missing or no image.
    """
    with opened(path) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):
            # Its `size` is that of the upright image.
            width, height = int(image.tag_v2[256]), int(image.tag_v2[257])
        return ImageHeader(
            height=height,
            width=width,
            values=_value_type(image),
            orientation=_orientation(image),
            pages=_has_pages(image),
        )


def read_size(path: Path) -> tuple[int, int]:
    """Return rows and columns as stored; errors as of `read_header`."""
    header = read_header(path)
    return header.height, header.width


def too_large(where: object, pixels: int, limit: int) -> str:
    """Return the text of the error about an image with more pixels than allowed."""
    return (
        f"{where} has {pixels / 1e6:,.0f} million pixels, more than {limit / 1e6:,.0f} million; "
        f"raise the limit (--set input.max_pixels={pixels} in training, --max-pixels {pixels} "
        "elsewhere), or cut the image into tiles"
    )


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow; what it raises until the end of the `with` becomes DataError."""
    try:
        # As a file, not a path: Pillow would map a turned TIFF into memory with the wrong width.
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # Pillow raises whatever its parsers meet in damaged files
        if isinstance(error, UnidentifiedImageError):
            reason = "of no known format"
        elif isinstance(error, OSError | ValueError | SyntaxError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no readable image ({reason}); replace or remove it") from error


def _value_type(image: Image.Image) -> Literal["uint8", "uint16", "int32", "float32"]:
    if image.mode == "F":
        return "float32"
    if image.mode == "I" and image.format != "PPM":  # Pillow scales those to 16 bits
        return "int32"
    deep = image.mode == "I" or image.mode.startswith("I;16") or _is_deep_colour(image)
    return "uint16" if deep else "uint8"


def _is_deep_colour(image: Image.Image) -> bool:
    """Return whether the file has 16 bits per channel of which Pillow keeps the upper 8."""
    return image.mode in _DEEP_COLOUR_MODES and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def _orientation(image: Image.Image) -> int | None:
    if not (isinstance(image, TiffImageFile) or _ORIENTED_BY & image.info.keys()):
        return 1
    try:
        # Pillow drops what it can't parse when it opens a file, so it is parsed again here.
        if data := image.info.get("exif"):
            Image.Exif().load(data)
        # Not `image.getexif()`: for a PNG without it that decodes all pixels to find one.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever its parsers meet in damaged files
        return None
    return orientation if orientation in range(1, 9) else 1


def _has_pages(image: Image.Image) -> bool:
    try:
        # The further pictures of a phone's JPEG ("MPO") are previews.
        return bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception:  # a page that nobody asked for may be damaged
        return True


def _to_rgb(image: Image.Image, values: str) -> Pixels:
    if values == "uint8":
        # `convert` copies, which for a slide are hundreds of megabytes.
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    grey_HW = np.asarray(image).astype(values)
    return np.repeat(grey_HW[:, :, None], 3, axis=2)


def _read_deep_colour(path: Path, *, must_be_upright: bool) -> Pixels:
    """Decode 16 bits per channel, which Pillow can't."""
    if must_be_upright:
        raise DataError(
            f"{path} has 16 bits per colour and an orientation, which can't be read together; "
            "save it with its rows in the right order, or remove its orientation tag"
        )
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), flags)
    except cv2.error:
        bgr = None
    if bgr is None or bgr.dtype != np.uint16:
        raise DataError(f"{path} is no readable image (16 bits per colour); save it again as PNG")
    return np.asarray(bgr[:, :, ::-1], dtype=np.uint16)


def _turned(pixels_HW3: Pixels, orientation: int) -> Pixels:
    """Return a view that is turned and mirrored as EXIF's orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels_HW3 = pixels_HW3.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels_HW3[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
