"""Uncompressed copies of large images on disk, of which a crop reads its own rows only.

Decoding an image of 10,000 x 10,000 pixels takes seconds and gigabytes; a training that did it for
each of its 400 crops would wait and swap.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polarmask.config.input_settings import InputConfig
from polarmask.data.images import read_image
from polarmask.data.intensity import to_uint8
from polarmask.errors import DataError
from polarmask.geometry.clip import PixelBox
from polarmask.system.files import atomic_path


class PixelFiles:
    """Reads parts of images in 8 bits; those of copied images are cheap.

    Values become 0 to 255 by the whole image, as when a tile is predicted.
    """

    def __init__(self, folder: Path | None, config: InputConfig) -> None:
        """Use a folder for copies; None makes none."""
        self._folder = folder
        self._config = config

    def copy(self, image: Path) -> None:
        """Write the copy of an image, if it is not there.

        Raises:
            DataError: The image can't be read, or there is no room for the copy.
        """
        path = self._path(image)
        if path is None or path.exists():
            return
        pixels = to_uint8(read_image(image), self._config)
        if all(np.array_equal(pixels[..., 0], pixels[..., channel]) for channel in (1, 2)):
            pixels = pixels[..., :1]
        try:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, pixels)
        except OSError as error:
            raise DataError(
                f"{path}: the uncompressed copy of {image} can't be written ({error}); make room "
                f"for {pixels.nbytes / 1e6:,.0f} MB there, or train on smaller images"
            ) from error

    def read(self, image: Path, box: PixelBox) -> NDArray[np.uint8]:
        """Return a part (H, W, 3) of an image, uint8 RGB.

        Raises:
            DataError: The image can't be read.
        """
        x0, y0, x1, y1 = box
        path = self._path(image)
        if path is None or not path.exists():
            return to_uint8(read_image(image), self._config)[y0:y1, x0:x1]
        # Opened each time: mapped pages count as memory of the process until the file is closed.
        part = np.load(path, mmap_mode="r")[y0:y1, x0:x1]
        return np.array(np.broadcast_to(part, (*part.shape[:2], 3)))

    def _path(self, image: Path) -> Path | None:
        if self._folder is None:
            return None
        about = image.stat()
        # A repaired image must not hide behind the copy of the old one.
        identity = [str(image), about.st_size, about.st_mtime_ns]
        described = json.dumps([*identity, self._config.intensity, self._config.bits])
        return self._folder / f"{hashlib.sha256(described.encode()).hexdigest()[:16]}.npy"
