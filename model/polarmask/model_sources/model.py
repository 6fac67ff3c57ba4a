"""A model to call: `polarmask.load("runs/first")("cells.tif")`."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from polarmask.data.find_images import find_images
from polarmask.data.images import Pixels, read_image
from polarmask.errors import DataError
from polarmask.inference.image_files import Finder
from polarmask.inference.instances import Instances
from polarmask.inference.tiles import TileSize
from polarmask.model_sources.open_model import open_model, open_server

logger = logging.getLogger(__name__)

Array: TypeAlias = NDArray[Any]
One: TypeAlias = str | Path | Array
"""An image file, or the pixels of an image."""

Several: TypeAlias = list[One] | tuple[One, ...]

_NARROWER = {"float64": np.float32, "float16": np.float32, "int64": np.int32, "uint32": np.int32}


class Model:
    """Finds instances in files and arrays; `load` makes one.

    Attributes:
        finder: A `Predictor`, or the client of a server.
    """

    def __init__(self, finder: Finder, *, score: float | None = None) -> None:
        self.finder = finder
        self._score = score

    @overload
    def __call__(self, images: One, *, score: float | None = ...) -> Instances: ...
    @overload
    def __call__(self, images: Several, *, score: float | None = ...) -> list[Instances]: ...
    def __call__(
        self, images: One | Several, *, score: float | None = None
    ) -> Instances | list[Instances]:
        """Find the instances of an image, or of several one after the other.

        Args:
            images: A file, an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA, or a list
                of these. For folders use `folder`.
            score: Lowest score, in [0, 1]; None takes that of `load`.

        Raises:
            DataError: A file can't be read, or an array is no image.
            ServerError: A server does not answer.
        """
        if isinstance(images, str | Path | np.ndarray):
            return self._find(images, score)
        return [self._find(image, score) for image in images]

    def folder(
        self, folder: str | Path, *, score: float | None = None
    ) -> Iterator[tuple[Path, Instances]]:
        """Yield every image file below a folder with its instances.

        Raises:
            DataError: The folder holds no image, or one can't be read.
        """
        for path in find_images([Path(folder)]):
            yield path, self._find(path, score)

    def _find(self, image: One, score: float | None) -> Instances:
        kept: Pixels | Path
        if isinstance(image, np.ndarray):
            kept = pixels = as_pixels(image)
        else:
            kept = Path(image)
            if kept.is_dir():
                raise DataError(f"{kept} is a folder; use model.folder({str(kept)!r})")
            pixels = read_image(kept, upright=True)
        found = self.finder.find(pixels, self._score if score is None else score)
        for warning in found.warnings.values():
            logger.warning("%s: %s", kept if isinstance(kept, Path) else "the array", warning)
        return replace(found, image=kept)


def load(
    source: str | Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    tile: TileSize = "auto",
    score: float | None = None,
    token: str | None = None,
) -> Model:
    """Open a model or a server to call.

    Args:
        source: Model folder, run folder, `checkpoint.pt`, archive (`.mar`), or the URL of a
            server's predictions.
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        threads: CPU threads; None leaves torch's choice.
        tile: Side in pixels of the overlapping tiles of large images; `auto` cuts images that are
            much larger than the training images into tiles of their size; None cuts none. A server
            chooses the side itself.
        score: Lowest score of what is returned, in [0, 1]; None takes the model's own, which had
            the best F1 on the val split.
        token: Access token, for a server that wants one.

    Raises:
        ModelFormatError, CheckpointError: The model can't be used.
        DataError: No client for the server.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return Model(open_server(source, token=token, in_tiles=tile is not None), score=score)
    return Model(open_model(source, device=device, threads=threads, tile=tile), score=score)


def as_pixels(array: Array) -> Pixels:
    """Turn an array into (H, W, 3) RGB: grey is repeated, alpha dropped, wide types narrowed.

    Raises:
        DataError: The array has another shape, or a type that holds no brightness.
    """
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise DataError(
            f"an array of shape {array.shape} is no image; give (rows, columns), with 1, 3 or 4 "
            "channels behind"
        )
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    array = array.astype(_NARROWER.get(str(array.dtype), array.dtype), copy=False)
    if str(array.dtype) not in ("uint8", "uint16", "int32", "float32"):
        raise DataError(f"an array of {array.dtype} is no image; give uint8, uint16 or float32")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return cast(Pixels, array[:, :, :3])
