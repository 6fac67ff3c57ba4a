"""What is found in many images, as files that other programs read: `polarmask predict --save`."""

import csv
import os
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TextIO

from polarmask.errors import DataError
from polarmask.inference.image_files import Finder, Looked, found_in, progress_in_errors
from polarmask.inference.instances import Instances
from polarmask.inference.measures import TABLE_COLUMNS
from polarmask.system.files import GrowingJson, atomic_path

FILE_OF = {
    "labels": "{}_labels.tif",
    "overlay": "{}_overlay.jpg",
    "geojson": "{}.geojson",
    "roi": "{}_rois.zip",
}
"""Files of each image, by kind; the name of the image stands for the braces."""

_LONGEST_STEM = 200
"""Bytes."""

KINDS = (*FILE_OF, "csv", "coco")
"""`csv` writes objects.csv and counts.csv, `coco` coco_results.json, each for all images."""


def save_images(
    finder: Finder,
    images: Sequence[Path],
    out: Path,
    kinds: Collection[str],
    *,
    min_score: float | None = None,
    max_pixels: int | None = None,
) -> Looked:
    """Write what is found in images to a folder, as it goes.

    Args:
        finder: A model or a server.
        images: Image files.
        out: The folder.
        kinds: Of `KINDS`.
        min_score: Leave out lower scores; None: those below the model's own.
        max_pixels: Larger images fail before they are decoded; None for no limit.

    Raises:
        DataError: `out` holds the images, or an unknown kind.
        ServerError, KeyboardInterrupt: With how many images are done.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise DataError(f"nothing is called {unknown[0]!r}; choose from {', '.join(KINDS)}")
    if any(out.resolve() == path.parent.resolve() for path in images):
        raise DataError(f"{out} is the folder of the images; give another one for the results")
    looked = Looked()
    names = _names(images)
    number_of = {path: number for number, path in enumerate(images, start=1)}
    with ExitStack() as stack:
        stack.enter_context(progress_in_errors(looked, images, out))
        tables = stack.enter_context(_Tables(out)) if "csv" in kinds else None
        results = (
            stack.enter_context(GrowingJson(out / "coco_results.json")) if "coco" in kinds else None
        )
        fail = looked.failed.__setitem__
        for path, image, found in found_in(finder, images, min_score, max_pixels, fail):
            found = replace(found, image=image)
            for kind in set(kinds) & set(FILE_OF):
                found.save(out / FILE_OF[kind].format(names[path]))
            if tables is not None:
                tables.add(path, found)
            if results is not None:
                for entry in found.coco(number_of[path]):
                    results.append({**entry, "file_name": path.name})
            looked.add(path, found)
    return looked


def _names(images: Sequence[Path]) -> dict[Path, str]:
    """Return a name for the files of each image: its own, and a number if others share it."""
    stems = {path: _stem(path) for path in images}
    sharing = Counter(stems.values())
    names = {path: stem for path, stem in stems.items() if sharing[stem] == 1}
    taken = set(names.values())
    for number, path in enumerate(images, start=1):
        if path not in names:
            name = f"{stems[path]}_{number:04d}"
            while name in taken:  # another image is called so
                name += "_"
            names[path] = name
    return names


def _stem(path: Path) -> str:
    """Return an image's name, cut if an ending would make it too long: files have 255 bytes."""
    return path.stem if len(os.fsencode(path.stem)) <= _LONGEST_STEM else path.stem[:50]


def _open_table(path: Path) -> TextIO:
    """Open a CSV file to write; names of files that are no UTF-8 become escapes."""
    return path.open("w", encoding="utf-8", errors="backslashreplace", newline="")


class _Tables:
    """objects.csv, which grows from image to image, and counts.csv, written at the end."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = _open_table(folder / "objects.csv")
        self._writer = csv.DictWriter(self._file, ("image", *TABLE_COLUMNS))
        self._counts: dict[Path, Counter[str]] = {}

    def __enter__(self) -> "_Tables":
        self._writer.writeheader()
        return self

    def add(self, path: Path, found: Instances) -> None:
        """Add an image's objects."""
        for row in found.measure():
            self._writer.writerow({"image": str(path), **asdict(row)})
        self._file.flush()
        self._counts[path] = Counter(found.category_names)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        names = sorted(set().union(*self._counts.values()))
        with (
            atomic_path(self._folder / "counts.csv") as temporary,
            _open_table(temporary) as file,
        ):
            writer = csv.writer(file)
            writer.writerow(["image", "all", *names])
            for path, counts in self._counts.items():
                writer.writerow([str(path), counts.total(), *(counts[name] for name in names)])
