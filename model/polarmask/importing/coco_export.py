"""COCO JSON as people publish and export it: any file names, any folders, one file per split.

CVAT, Label Studio, Roboflow and FiftyOne name the file, its folder and the images' folder
differently, so images are looked for by the path that the JSON gives and then by name alone.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarmask.data.coco_fields import quote, read_flag, read_integer
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoFile:
    """One COCO JSON file and where its images are."""

    path: Path
    raw: dict[str, Any]
    images: Path
    """Folder below which the images are."""
    split: str | None


def find_coco_files(folder: Path) -> list[CocoFile]:
    """Return the JSON files below a folder that hold COCO images with outlines; log the others."""
    found = []
    for path in visible_files(folder):
        if path.suffix.lower() != ".json":
            continue
        try:
            file = load_coco_file(path, folder, split_of(path.relative_to(folder).with_suffix("")))
        except DataError as error:
            logger.warning("note: left out: %s", error)
            continue
        # Captions and keypoints of the same images have files of the same form.
        outlines = any(each.get("segmentation") for each in file.raw["annotations"])
        if outlines and not any("keypoints" in each for each in file.raw["categories"]):
            found.append(file)
    return found


def load_coco_file(path: Path, images: Path, split: str | None) -> CocoFile:
    """Load a COCO file.

    Args:
        path: The JSON file.
        images: Folder below which its images are.
        split: train, val, or None if it is not known.

    Raises:
        DataError: The file is no COCO instances JSON.
    """
    try:
        raw = json.loads(path.read_bytes())  # in whatever encoding JSON allows
        lists = [raw["images"], raw["annotations"], raw["categories"]]
        if not all(isinstance(each, dict) for entries in lists for each in entries):
            raise TypeError("an entry is no object")
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO instances JSON ({error}); export it again") from error
    return CocoFile(path, raw, images, split)


def read_coco(files: Sequence[CocoFile]) -> Source:
    """Read COCO files; ids of categories are kept if the files agree on them."""
    source = Source("COCO", (), category_ids=_category_ids(files))
    source.images = (image for file in files for image in _read(file, source))
    return source


def _category_ids(files: Sequence[CocoFile]) -> dict[str, int]:
    """Return the id of each category name; empty if ids or names are not unique."""
    pairs = {
        (str(each.get("name")), read_integer(each.get("id")))
        for file in files
        for each in file.raw["categories"]
    }
    id_of = {name: number for name, number in pairs if number is not None}
    return id_of if len(id_of) == len(set(id_of.values())) == len(pairs) else {}


def _read(file: CocoFile, source: Source) -> Iterator[SourceImage]:
    found = _Images(file.images)
    names = {_id(each, "id"): str(each.get("name")) for each in file.raw["categories"]}
    objects: dict[str, list[SourceObject]] = {_id(each, "id"): [] for each in file.raw["images"]}
    for each in file.raw["annotations"]:
        where = f"{file.path}: annotation {each.get('id')}"
        if not each.get("segmentation"):
            source.leave_out("object", "no_outline", where, "has no segmentation")
        elif (image_id := _id(each, "image_id")) not in objects:
            source.leave_out("object", "unknown_image", where, "belongs to no image of the list")
        elif (category_id := _id(each, "category_id")) not in names:
            source.leave_out(
                "object", "unknown_category", where, "belongs to no category of the list"
            )
        elif (crowd := read_flag(each.get("iscrowd"))) is None:
            detail = f"iscrowd is {quote(each['iscrowd'])}; give 0 or 1"
            source.leave_out("object", "bad_iscrowd", where, detail)
        else:
            one = SourceObject(names[category_id], each["segmentation"], crowd)
            objects[image_id].append(one)
    for each in file.raw["images"]:
        try:
            path = found.path_of(str(each.get("file_name")))
            height, width = read_size(path)
        except DataError as error:
            source.leave_out("image", "no_image_file", f"image {each.get('id')}", str(error))
            continue
        size = read_integer(each.get("width")) or width, read_integer(each.get("height")) or height
        yield SourceImage(path, *size, tuple(objects[_id(each, "id")]), file.split)


def _id(entry: dict[str, Any], key: str) -> str:
    """Return an id as text: 1, 1.0 and "1" are one id, as programs write them."""
    number = read_integer(entry.get(key))
    return repr(entry.get(key)) if number is None else str(number)


class _Images:
    """The image files below a folder, found by the path in a JSON or by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of_name: dict[str, list[Path]] = {}
        for path in image_files(folder):
            self._of_name.setdefault(path.name, []).append(path)

    def path_of(self, file_name: str) -> Path:
        """Return the file.

        Raises:
            DataError: No file has this name, or several have it.
        """
        wanted = Path(file_name.replace("\\", "/"))
        of_name = self._of_name.get(wanted.name, [])
        # The longest common end wins: a.png may lie in train2017 and in val2017.
        ends = [path for path in of_name if path.parts[-len(wanted.parts) :] == wanted.parts]
        found = ends or of_name
        if not found:
            raise DataError(f"no file {wanted.name} below {self._folder}")
        if len(found) > 1:
            raise DataError(f"{len(found)} files are called {wanted.name}: {found[0]}, {found[1]}")
        return found[0]
