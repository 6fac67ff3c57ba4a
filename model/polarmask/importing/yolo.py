"""YOLO segmentation: a text file per image, `class x y x y ...` as fractions of the image."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from polarmask.data.coco_fields import read_integer
from polarmask.data.images import read_size
from polarmask.errors import DataError
from polarmask.importing.source import (
    Source,
    SourceImage,
    SourceObject,
    image_files,
    split_of,
    visible_files,
)


def read_yolo(folder: Path) -> Source:
    """Read `images/` and `labels/` folders, in whichever order split and kind are nested.

    Images without a text file are background, as for YOLO.

    Raises:
        DataError: `data.yaml` is unreadable, or gives names to what is no class number.
    """
    names = _category_names(folder)
    source = Source("YOLO segmentation", ())
    source.images = _read(folder, names, source)
    return source


def is_yolo(folder: Path) -> bool:
    """Return whether a folder holds text files in a folder `labels`."""
    files = (path.relative_to(folder) for path in visible_files(folder))
    return any(path.suffix == ".txt" and "labels" in path.parent.parts for path in files)


def _category_names(folder: Path) -> Mapping[int, str]:
    """Read the names in `data.yaml` (or another YAML file); none if there is no such file."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{path} is no readable YAML ({error}); repair it") from error
        names = raw.get("names") if isinstance(raw, dict) else None
        if isinstance(names, list):
            return dict(enumerate(map(str, names)))
        if isinstance(names, dict):
            wrong = [key for key in names if read_integer(key) is None]
            if wrong:
                raise DataError(
                    f"{path}: names has the key {wrong[0]!r}; write each as NUMBER: NAME"
                )
            return {int(key): str(name) for key, name in names.items()}
    return {}


def _read(folder: Path, names: Mapping[int, str], source: Source) -> Iterator[SourceImage]:
    for path in image_files(folder):
        try:
            height, width = read_size(path)
            objects = tuple(_objects(_text_file(path), (width, height), names, source))
        except DataError as error:
            source.leave_out("image", "unreadable_image", path, str(error))
            continue
        yield SourceImage(path, width, height, objects, split_of(path.parent.relative_to(folder)))


def _text_file(image: Path) -> Path:
    """Return the path of an image's annotations: `labels` in place of the last `images`."""
    parts = list(image.with_suffix(".txt").parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            return Path(*parts)
    return image.parent / "labels" / f"{image.stem}.txt"


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _objects(
    path: Path, size: tuple[int, int], names: Mapping[int, str], source: Source
) -> Iterator[SourceObject]:
    if not path.is_file():
        return
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            category, *values = (float(text) for text in line.split())
        except ValueError:
            source.leave_out(
                "object", "bad_coordinates", where, "holds something that is no number"
            )
            continue
        if len(values) == 4:
            source.leave_out("object", "box_only", where, "is a box, no outline")
        elif len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, (category, *values))):
            source.leave_out(
                "object",
                "bad_coordinates",
                where,
                f"has {len(values)} coordinates; an outline has x, y pairs",
            )
        else:
            polygon: list[Any] = [value * size[index % 2] for index, value in enumerate(values)]
            yield SourceObject(names.get(int(category), f"class {int(category)}"), [polygon])
