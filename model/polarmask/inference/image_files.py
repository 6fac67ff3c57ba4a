"""Image files in, JSON or overlays out, for people who want to see what a model does."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polarmask.data.images import Pixels, read_image
from polarmask.errors import DataError
from polarmask.inference.drawing import contact_sheet, draw_shapes, shapes_of_instances, write_jpeg
from polarmask.inference.predictor import Instances
from polarmask.system.files import write_text

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_SHEET_IMAGES = 12


class Finder(Protocol):
    """Finds instances in images: a `Predictor`, or a client of a server."""

    def predict(self, images: Sequence[Pixels]) -> list[Instances]:
        """Return what is in each (H, W, 3) RGB image."""


def predict_images(
    finder: Finder, images: Iterable[Path], out: Path, *, min_score: float = 0.3
) -> dict[str, int]:
    """Write what is found in images to a JSON file, one entry per image.

    Args:
        finder: A model or a server.
        images: Image files.
        out: The file to write.
        min_score: Leave out lower scores.

    Returns:
        Number of instances by image path.

    Raises:
        DataError: An image can't be read.
    """
    entries = [_to_json(path, found, min_score) for path, _, found in _found_in(finder, images)]
    write_text(out, json.dumps(entries, indent=1))
    return {entry["image"]: len(entry["instances"]) for entry in entries}


def visualize_images(
    finder: Finder,
    images: Iterable[Path],
    out: Path,
    *,
    min_score: float = 0.3,
    rays: bool = False,
) -> dict[str, int]:
    """Write an overlay per image, and a contact sheet of the first ones.

    Args:
        finder: A model or a server.
        images: Image files.
        out: Folder for `NUMBER_NAME.jpg` and `contact_sheet.jpg`.
        min_score: Leave out lower scores.
        rays: Draw centres and rays, too.

    Returns:
        Number of instances by image path.

    Raises:
        DataError: An image can't be read, or rays are wanted and the server returns none.
    """
    counts: dict[str, int] = {}
    overlays: list[NDArray[np.uint8]] = []
    for number, (path, image, found) in enumerate(_found_in(finder, images)):
        if rays and np.isnan(found.centers).any():
            raise DataError("this server returns no centres and no rays; give the model itself")
        shapes = shapes_of_instances(found, min_score=min_score, rays=rays)
        overlay = draw_shapes(image, shapes)
        # Files of different folders may have the same name; the number does not repeat.
        write_jpeg(out / f"{number:04d}_{path.stem}.jpg", overlay)
        counts[str(path)] = len(shapes)
        if len(overlays) < _SHEET_IMAGES:
            overlays.append(overlay)
    names = [Path(path).name[:40] for path in list(counts)[:_SHEET_IMAGES]]
    write_jpeg(out / "contact_sheet.jpg", contact_sheet(overlays, captions=names))
    return counts


def _found_in(finder: Finder, images: Iterable[Path]) -> Iterator[tuple[Path, Pixels, Instances]]:
    for path in tqdm(dict.fromkeys(images), desc="predict", unit="image", delay=2, disable=None):
        image = read_image(path, upright=True)
        yield path, image, finder.predict([image])[0]


def find_images(images: Iterable[Path]) -> list[Path]:
    """Return image files as given, and all image files below given folders.

    Raises:
        DataError: A path does not exist, or no image is found.
    """
    found: list[Path] = []
    for path in images:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist; give image files or folders")
    if not found:
        raise DataError(f"no image with a suffix of {', '.join(sorted(_SUFFIXES))} was found")
    return found


def _to_json(path: Path, found: Instances, min_score: float) -> dict[str, Any]:
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
            for n in np.flatnonzero(found.scores >= min_score).tolist()
        ],
    }


def _outlines_to_json(found: Instances, row: int) -> dict[str, Any]:
    """Return `polygon`, and for an instance in several parts all of them as `polygons`."""
    outlines = [np.round(part.astype(float), 2).tolist() for part in found.parts(row)]
    return {"polygon": outlines[0]} | ({"polygons": outlines} if len(outlines) > 1 else {})
