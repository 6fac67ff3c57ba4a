"""Images in, overlays and one JSON out: for people who want to see what a model does."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polarmask.errors import DataError
from polarmask.files import atomic_path, write_text
from polarmask.image_file import read_image
from polarmask.inference import Instances, Predictor
from polarmask.visualize import contact_sheet, draw_shapes, encode_jpeg, shapes_of_instances

_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_SHEET_PICTURES = 12


def predict_images(
    model: Path,
    images: Iterable[Path],
    out: Path,
    *,
    min_score: float = 0.3,
    device: str | None = "cpu",
    threads: int | None = None,
) -> dict[str, int]:
    """Find instances and write `predictions.json`, one overlay per image and a contact sheet.

    Args:
        model: Model folder.
        images: Image files, or folders that are searched for them.
        out: Folder for the results.
        min_score: Leave out lower scores, in JSON and overlays alike.
        device: "cpu" or "cuda"; None takes CUDA where there is one.
        threads: CPU threads; None leaves torch's choice.

    Returns:
        Number of instances by image path.

    Raises:
        DataError: No image found, or one can't be read.
        ModelFormatError: The model can't be used.
    """
    paths = _image_files(images)
    predictor = Predictor.load(model, device=device, threads=threads)
    entries: list[dict[str, Any]] = []
    pictures: list[NDArray[np.uint8]] = []
    for number, path in enumerate(tqdm(paths, desc="predict", unit="image", delay=2, disable=None)):
        image = read_image(path, upright=True)
        found = predictor.predict([image])[0]
        picture = draw_shapes(image, shapes_of_instances(found, min_score=min_score))
        # The number keeps apart files of equal name from different folders.
        overlay = out / f"{number:04d}_{path.stem}.jpg"
        with atomic_path(overlay) as temporary:
            temporary.write_bytes(encode_jpeg(picture))
        entries.append(_to_json(path, overlay, found, min_score))
        if len(pictures) < _SHEET_PICTURES:
            pictures.append(picture)
    write_text(out / "predictions.json", json.dumps(entries, indent=1))
    with atomic_path(out / "contact_sheet.jpg") as temporary:
        names = [path.name[:40] for path in paths[:_SHEET_PICTURES]]
        temporary.write_bytes(encode_jpeg(contact_sheet(pictures, captions=names)))
    return {entry["image"]: len(entry["instances"]) for entry in entries}


def _image_files(images: Iterable[Path]) -> list[Path]:
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


def _to_json(path: Path, overlay: Path, found: Instances, min_score: float) -> dict[str, Any]:
    return {
        "image": str(path),
        "overlay": overlay.name,
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
