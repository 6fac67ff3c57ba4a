"""Reads a COCO folder and reports what is wrong with it.

A data folder contains `images/` and `annotations/instances_{split}.json`. Bad images and objects
are left out and reported as `Problem`s, so that training never meets them; only data of which
nothing usable is left raises DataError. The file is read item by item, and the images' records are
kept on disk, so that memory hardly grows with the data (ADR 0020).

Polygons are in continuous pixel coordinates: the pixel in row i and column j covers
[j, j+1) x [i, i+1).
"""

from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from polarmask.data.disk_list import DiskList, DiskListWriter
from polarmask.data.images import read_image, read_size
from polarmask.data.json_stream import MissingListError, read_lists
from polarmask.data.summary import Problem, SplitSummary, count_problems, describe_problems
from polarmask.errors import DataError
from polarmask.geometry.masks import Polygon, Segmentation
from polarmask.geometry.outlines import OutlineError, read_outline
from polarmask.system.files import leaves_folder

_READ_THREADS = 8
_CHECKED_TOGETHER = 1024


@dataclass(frozen=True)
class Category:
    """An object category; `id` is the one in the file, with gaps as in COCO."""

    id: int
    name: str


def category_labels(categories: Sequence[Category]) -> list[str]:
    """Return a text per category that no other has: its name, and its id where names are shared."""
    count_of = Counter(category.name for category in categories)
    return [
        category.name if count_of[category.name] == 1 else f"{category.name} ({category.id})"
        for category in categories
    ]


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object or crowd region of an image."""

    id: int
    category: int
    """Index into `CocoData.categories`."""
    parts: tuple[Polygon, ...]
    """Outlines (V, 2) float64 clipped to the image, largest first; empty for a crowd region."""
    bbox: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels, from the outlines or the mask, not from the file."""
    area: float
    """Square pixels, from the outlines or the mask, not from the file."""
    crowd: bool
    """Many objects in one region: training ignores it, evaluation forgives detections inside."""
    segmentation: Segmentation
    """As in the file (RLE compressed), unclipped, for evaluation."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image and its usable annotations."""

    id: int
    file_name: str
    """Relative to `images/`, may hold subfolders."""
    width: int
    height: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class CocoData:
    """One split of a COCO folder, images in the order of the file."""

    root: Path
    split: str
    categories: tuple[Category, ...]
    """Sorted by id, so that splits agree on indices."""
    images: Sequence[ImageRecord]
    """Each access reads from disk: iterate once if possible."""
    problems: tuple[Problem, ...]
    summary: SplitSummary
    """What the file lists and what of it is used; stays when only some images are looked at."""

    def image_path(self, record: ImageRecord) -> Path:
        """Return the path of the image."""
        return self.root / "images" / record.file_name

    def only(self, ids: Collection[int], summary: SplitSummary) -> "CocoData":
        """Return the data with only the images of these ids; `summary` is theirs."""
        kept = [n for n, image in enumerate(self.images) if image.id in ids]
        if isinstance(self.images, DiskList):
            images: Sequence[ImageRecord] = self.images.take(np.array(kept, dtype=np.int64))
        else:
            images = tuple(self.images[n] for n in kept)
        return replace(self, images=images, summary=summary)


def annotation_file(data: Path, split: str) -> Path:
    """Return the path of the annotations of a split."""
    return data / "annotations" / f"instances_{split}.json"


def load_coco(data: Path, split: str, *, check_pixels: bool = False) -> CocoData:
    """Read and check one split.

    Args:
        data: Folder with `images/` and `annotations/`.
        split: Names the file `annotations/instances_{split}.json`.
        check_pixels: Decode every image to find truncated ones. Without it only headers are read.

    Raises:
        DataError: Folder, file or keys are missing, the JSON is unreadable, or no usable image or
            object is left.
    """
    path = annotation_file(data, split)
    document = _read_document(data, path)
    problems: list[Problem] = []
    categories = _read_categories(document["categories"], problems)
    index_of_category = {category.id: index for index, category in enumerate(categories)}
    raw_of_image = _group_by_image(document["annotations"], document["images"], problems)
    images, counts = DiskListWriter[ImageRecord](), Counter[str]()
    entries = _read_images(document["images"], problems)
    for entry in _check_files(
        data / "images", entries, problems, check_pixels, total=len(document["images"])
    ):
        annotations = tuple(
            annotation
            for raw in raw_of_image.of(entry.id)
            if (annotation := _read_annotation(raw, entry, index_of_category, problems))
        )
        images.add(replace(entry, annotations=annotations))
        counts.update("crowds" if annotation.crowd else "objects" for annotation in annotations)
    found = images.finish()
    if not counts["objects"]:
        crowds = f", all {counts['crowds']:,} are crowds: check iscrowd" if counts["crowds"] else ""
        raise DataError(
            f"{path}: no usable {'object' if found else 'image'} is left{crowds}; repair the data. "
            + describe_problems(problems)
        )
    summary = SplitSummary(
        split=split,
        listed_images=len(document["images"]),
        listed_objects=len(document["annotations"]),
        images=len(found),
        objects=counts["objects"],
        crowds=counts["crowds"],
        problems=count_problems(problems),
    )
    return CocoData(data, split, categories, found, tuple(problems), summary)


def _read_document(data: Path, path: Path) -> Mapping[str, DiskList[Any]]:
    """Read the lists of a COCO JSON file."""
    for needed in (data, data / "images", path):
        if not needed.exists():
            raise DataError(
                f"{needed} does not exist; a data folder holds images/ and "
                "annotations/instances_{train,val}.json"
            )
    lists = {key: DiskListWriter[Any]() for key in ("images", "annotations", "categories")}
    try:
        for key, item in read_lists(path, lists):
            lists[key].add(item)
    except MissingListError as error:
        raise DataError(f"{path} has {error}; export it as COCO instances JSON") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no readable JSON ({error}); export it again") from error
    return {key: writer.finish() for key, writer in lists.items()}


def _read_categories(raw: Sequence[Any], problems: list[Problem]) -> tuple[Category, ...]:
    names: dict[int, str] = {}
    for position, entry in enumerate(raw):
        where = f"category {_id_or_position(entry, position)}"
        if not _has_int(entry, "id") or not isinstance(entry.get("name"), str):
            problems.append(
                Problem("category", "malformed_category", where, "needs an integer id and a name")
            )
        elif entry["id"] in names:
            problems.append(
                Problem("category", "duplicate_category_id", where, "only the first is used")
            )
        else:
            names[entry["id"]] = entry["name"]
    for name, count in Counter(names.values()).items():
        if count > 1:
            detail = f"{count} categories have this name; kept apart by id"
            where = f"category {name!r}"
            problems.append(
                Problem("category", "duplicate_category_name", where, detail, kept=True)
            )
    return tuple(Category(key, names[key]) for key in sorted(names))


@dataclass(frozen=True)
class _Groups:
    """The usable entries of a list of annotations by image."""

    raw: DiskList[dict[str, Any]]
    image_A: NDArray[np.int64]
    """Image id of each, ascending."""
    position_A: NDArray[np.int64]
    """Its index in `raw`."""

    def of(self, image_id: int) -> Iterator[dict[str, Any]]:
        """Yield an image's entries in the order of the file."""
        first = np.searchsorted(self.image_A, image_id, "left")
        last = np.searchsorted(self.image_A, image_id, "right")
        for position in self.position_A[first:last].tolist():
            yield self.raw[position]


def _group_by_image(
    raw: DiskList[Any], raw_images: DiskList[Any], problems: list[Problem]
) -> _Groups:
    """Sort annotations by image id; those without a known image or own id are left out."""
    known = {entry["id"] for entry in raw_images if _has_int(entry, "id")}
    ids, image_ids, positions = array("q"), array("q"), array("q")
    for position, entry in enumerate(raw):
        where = f"annotation {_id_or_position(entry, position)}"
        if not all(_has_int(entry, key) for key in ("id", "image_id", "category_id")):
            detail = "needs integers id, image_id and category_id"
            problems.append(Problem("object", "malformed_annotation", where, detail))
        elif entry["image_id"] not in known:
            detail = f"image {entry['image_id']} is not in the list of images"
            problems.append(Problem("object", "unknown_image", where, detail))
        else:
            ids.append(entry["id"])
            image_ids.append(entry["image_id"])
            positions.append(position)
    id_A, image_A, position_A = (np.array(each, np.int64) for each in (ids, image_ids, positions))
    is_first_A = np.zeros(len(id_A), dtype=bool)
    is_first_A[np.unique(id_A, return_index=True)[1]] = True
    for annotation_id in id_A[~is_first_A].tolist():
        where = f"annotation {annotation_id}"
        problems.append(
            Problem("object", "duplicate_annotation_id", where, "only the first is used")
        )
    image_A, position_A = image_A[is_first_A], position_A[is_first_A]
    order_A = np.argsort(image_A, kind="stable")
    return _Groups(raw, image_A[order_A], position_A[order_A])


def _read_images(raw: Sequence[Any], problems: list[Problem]) -> Iterator[ImageRecord]:
    """Yield records, still without annotations, that make sense on their own."""
    ids: set[int] = set()
    names: set[str] = set()
    for position, entry in enumerate(raw):
        where = f"image {_id_or_position(entry, position)}"
        if not all(_has_int(entry, key) for key in ("id", "width", "height")) or not isinstance(
            entry.get("file_name"), str
        ):
            detail = "needs integers id, width, height and a file_name"
            problems.append(Problem("image", "malformed_image", where, detail))
            continue
        name = entry["file_name"]
        where = f"{where} ({name})"
        if min(entry["width"], entry["height"]) < 1:
            detail = f"size {entry['width']}x{entry['height']} leaves no pixel"
            problems.append(Problem("image", "malformed_image", where, detail))
        elif entry["id"] in ids:
            problems.append(Problem("image", "duplicate_image_id", where, "only the first is used"))
        elif leaves_folder(name):
            problems.append(Problem("image", "unsafe_file_name", where, "leads out of images/"))
        elif name in names:
            detail = "another image has this file; only the first is used"
            problems.append(Problem("image", "duplicate_file_name", where, detail))
        else:
            yield ImageRecord(entry["id"], name, entry["width"], entry["height"], ())
        ids.add(entry["id"])
        names.add(name)


def _check_files(
    folder: Path,
    records: Iterator[ImageRecord],
    problems: list[Problem],
    check_pixels: bool,
    *,
    total: int,
) -> Iterator[ImageRecord]:
    """Yield the records whose file exists, opens and has the size in the JSON."""

    def check(record: ImageRecord) -> Problem | None:
        return check_file(folder / record.file_name, record, pixels=check_pixels)

    with (
        ThreadPoolExecutor(_READ_THREADS) as pool,
        tqdm(total=total, desc="checking images", unit="image", delay=2, disable=None) as progress,
    ):
        while some := list(islice(records, _CHECKED_TOGETHER)):
            for record, problem in zip(some, pool.map(check, some), strict=True):
                progress.update()
                if problem is None:
                    yield record
                else:
                    problems.append(problem)


def check_file(path: Path, record: ImageRecord, *, pixels: bool) -> Problem | None:
    """Return what is wrong with an image's file; None if it opens and has the size it should."""
    where = f"image {record.id} ({record.file_name})"
    if not path.is_file():
        return Problem("image", "missing_image", where, "no such file under images/")
    try:
        height, width = read_image(path).shape[:2] if pixels else read_size(path)
    except DataError as error:
        return Problem("image", "undecodable_image", where, str(error))
    if (width, height) == (record.width, record.height):
        return None
    detail = f"the file is {width}x{height}, the JSON says {record.width}x{record.height}"
    if (height, width) == (record.width, record.height):
        detail += "; annotate without the file's EXIF orientation, as COCO does"
    return Problem("image", "image_size_mismatch", where, detail)


def _read_annotation(
    raw: dict[str, Any],
    image: ImageRecord,
    index_of_category: dict[int, int],
    problems: list[Problem],
) -> Annotation | None:
    """Check one annotation; None after appending the reason to `problems`."""
    where = f"annotation {raw['id']} (image {image.id}, {image.file_name})"
    category = index_of_category.get(raw["category_id"])
    if category is None:
        detail = f"category {raw['category_id']} is not in the list of categories"
        problems.append(Problem("object", "unknown_category", where, detail))
        return None
    crowd = bool(raw.get("iscrowd", 0))
    try:
        outline = read_outline(raw, (image.height, image.width), crowd=crowd)
    except OutlineError as error:
        problems.append(Problem("object", error.kind, where, error.detail))
        return None
    problems.extend(
        Problem("object", kind, where, detail, kept=True) for kind, detail in outline.notes
    )
    return Annotation(
        id=raw["id"],
        category=category,
        parts=outline.parts,
        bbox=outline.bbox,
        area=outline.area,
        crowd=crowd,
        segmentation=outline.segmentation,
    )


def _has_int(entry: object, key: str) -> bool:
    value = entry.get(key) if isinstance(entry, dict) else None
    return type(value) is int and -(2**63) <= value < 2**63


def _id_or_position(entry: object, position: int) -> str:
    """Name an entry in a message, also one without an id."""
    if isinstance(entry, dict) and _has_int(entry, "id"):
        return str(entry["id"])
    return f"at position {position}"
