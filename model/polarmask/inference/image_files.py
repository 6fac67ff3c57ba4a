"""Image files in, JSON or overlays out, for people who want to see what a model does."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from polarmask.data.images import Pixels, read_header, read_image
from polarmask.errors import DataError, ServerError
from polarmask.inference.drawing import contact_sheet, draw_shapes, write_jpeg
from polarmask.inference.instances import Instances
from polarmask.system.files import GrowingJson
from polarmask.system.progress_bar import progress_bar

logger = logging.getLogger(__name__)

_SHEET_IMAGES = 12
_NAME_CHARACTERS = 50
"""Of an image's name in an overlay's: file names have at most 255 bytes."""


@dataclass
class Looked:
    """What became of the images."""

    counts: dict[str, int] = field(default_factory=dict)
    """Number of instances by image path."""
    warnings: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Why instances may be missing, by path and kind."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why by path, of images that can't be read or that a server refused."""
    min_score: float | None = None
    """Lower scores were left out; None before the first image."""

    def add(self, path: Path, found: Instances) -> None:
        """Note how many instances an image has, and why there may be more."""
        self.counts[str(path)] = len(found)
        self.min_score = found.min_score
        if found.warnings:
            self.warnings[str(path)] = found.warnings


class Finder(Protocol):
    """Finds instances in images: a `Predictor`, or a client of a server."""

    def find(self, image: Pixels, min_score: float | None = None) -> Instances:
        """Return what is in an (H, W, 3) RGB image, with scores not below `min_score`.

        None: not below what the model keeps as its own, see `ModelCard.operating_score`.
        """


def predict_images(
    finder: Finder,
    images: Sequence[Path],
    out: Path,
    *,
    min_score: float | None = None,
    max_pixels: int | None = None,
) -> Looked:
    """Write what is found in images to a JSON file, one entry per image.

    The file grows from image to image and is whole JSON at any time. An image that fails gets an
    entry with `error` in place of `instances`.

    Args:
        finder: A model or a server.
        images: Image files.
        out: The file to write.
        min_score: Leave out lower scores; None: those below the model's own.
        max_pixels: Larger images fail before they are decoded; None for no limit.

    Raises:
        DataError: `out` is one of the images.
        ServerError, KeyboardInterrupt: With how many images are done.
    """
    if any(out.resolve() == path.resolve() for path in images):
        raise DataError(f"{out} is one of the images; give another file for the predictions")
    looked = Looked()
    with GrowingJson(out) as entries, progress_in_errors(looked, images, out):

        def fail(path: str, reason: str) -> None:
            entries.append({"image": path, "error": reason})
            looked.failed[path] = reason

        for path, _, found in found_in(finder, images, min_score, max_pixels, fail):
            entries.append(_to_json(path, found))
            looked.add(path, found)
    return looked


def visualize_images(
    finder: Finder,
    images: Sequence[Path],
    out: Path,
    *,
    min_score: float | None = None,
    max_pixels: int | None = None,
    rays: bool = False,
) -> Looked:
    """Write an overlay per image, and a contact sheet of the first ones.

    Args:
        finder: A model or a server.
        images: Image files.
        out: Folder for `NUMBER_NAME.jpg` and `contact_sheet.jpg`.
        min_score: Leave out lower scores; None: those below the model's own.
        max_pixels: Larger images fail before they are decoded; None for no limit.
        rays: Draw centres and rays, too.

    Raises:
        DataError: `out` holds the images, or rays are wanted and the server returns none.
        ServerError, KeyboardInterrupt: With how many images are done.
    """
    if any(out.resolve() == path.parent.resolve() for path in images):
        raise DataError(f"{out} is the folder of the images; give another one for the overlays")
    looked = Looked()
    overlays: list[NDArray[np.uint8]] = []
    with progress_in_errors(looked, images, out):
        fail = looked.failed.__setitem__
        for path, image, found in found_in(finder, images, min_score, max_pixels, fail):
            if rays and np.isnan(found.centers).any():
                raise DataError("this server returns no centres and no rays; give the model itself")
            overlay = draw_shapes(image, found.shapes(rays=rays))
            # Files of different folders may have the same name; the number does not repeat.
            name = f"{len(looked.counts):04d}_{path.stem[:_NAME_CHARACTERS]}.jpg"
            write_jpeg(out / name, overlay)
            looked.add(path, found)
            if len(overlays) < _SHEET_IMAGES:
                overlays.append(overlay)
    if overlays:
        names = [Path(path).name[:40] for path in list(looked.counts)[:_SHEET_IMAGES]]
        write_jpeg(out / "contact_sheet.jpg", contact_sheet(overlays, captions=names))
    return looked


def found_in(
    finder: Finder,
    images: Iterable[Path],
    min_score: float | None,
    max_pixels: int | None,
    fail: Callable[[str, str], None],
) -> Iterator[tuple[Path, Pixels, Instances]]:
    """Yield each image with what is in it; call `fail` with the path and why there is nothing."""
    for path in progress_bar(images, desc="predict", unit="image"):
        try:
            image = read_image(path, upright=True, max_pixels=max_pixels)
            found = finder.find(image, min_score)
        except DataError as error:
            fail(str(path), str(error))
        else:
            if read_header(path).pages:
                logger.warning("%s has several pages or frames; only the first was used", path)
            yield path, image, found


@contextmanager
def progress_in_errors(looked: Looked, images: Sequence[Path], out: Path) -> Iterator[None]:
    """Tell what is done already, when Ctrl-C or a server ends the block."""
    try:
        yield
    except (ServerError, KeyboardInterrupt) as stop:
        number = len(looked.counts) + len(looked.failed)
        done = f"{number} of {len(images)} images are done{f', see {out}' if number else ''}"
        raise type(stop)("; ".join([*map(str, stop.args), done])) from stop


def _to_json(path: Path, found: Instances) -> dict[str, Any]:
    return {
        "image": str(path),
        "height": found.image_hw[0],
        "width": found.image_hw[1],
        "instances": [
            {
                "category_id": int(found.category_ids[n]),
                "category": found.category_names[n],
                "score": round(float(found.scores[n]), 4),
                "bbox": [round(float(v), 2) for v in found.boxes_xywh[n]],
                **_outlines_to_json(found, n),
            }
            for n in range(len(found))
        ],
    }


def _outlines_to_json(found: Instances, row: int) -> dict[str, Any]:
    """Return `polygon`, and for an instance in several parts all of them as `polygons`."""
    outlines = [np.round(part.astype(float), 2).tolist() for part in found.parts(row)]
    return {"polygon": outlines[0]} | ({"polygons": outlines} if len(outlines) > 1 else {})
