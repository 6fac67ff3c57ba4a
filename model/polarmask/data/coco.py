"""Reads a COCO folder and reports what is wrong with it.

A data folder contains `images/` and `annotations/instances_{split}.json`. Bad images and objects
are left out and reported as `Problem`s, so that training never meets them; only data of which
nothing usable is left raises DataError. The file is read item by item, and the images' records are
kept on disk, so that memory hardly grows with the data (ADR 0020).

Polygons are in continuous pixel coordinates: the pixel in row i and column j covers
[j, j+1) x [i, i+1).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from polarmask.config.input_settings import InputConfig
from polarmask.data.annotation_index import index_annotations
from polarmask.data.coco_fields import (
    position_or_id,
    quote,
    read_file_name,
    read_flag,
    read_integer,
    read_integers,
    read_name,
)
from polarmask.data.disk_list import DiskList, DiskListWriter
from polarmask.data.image_checks import ImageChecks
from polarmask.data.json_stream import MissingListError, read_lists
from polarmask.data.summary import Problem, SplitSummary, count_problems, describe_problems
from polarmask.errors import DataError
from polarmask.geometry.masks import Polygon, Segmentation
from polarmask.geometry.outlines import OutlineError, read_outline
from polarmask.system.files import leaves_folder
from polarmask.system.progress_bar import progress_bar

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
    """As in the file; another where the file has none, or the same one twice."""
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

    @property
    def where_and_hw(self) -> tuple[str, tuple[int, int]]:
        """Name of the image in problems; rows and columns."""
        return f"image {self.id} ({self.file_name})", (self.height, self.width)


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
    object_counts: tuple[int, ...]
    """Objects of each category, crowd regions not counted."""
    summary: SplitSummary
    """What the file lists and what of it is used; stays when only some images are looked at."""
    input_settings: tuple[str, ...] = ()
    """What `--set` should change, for the values of the pixels."""

    def image_path(self, record: ImageRecord) -> Path:
        """Return the path of the image."""
        return self.root / "images" / record.file_name

    def only(self, ids: Collection[int], looked: SplitSummary) -> "CocoData":
        """Return the data with only the images of these ids.

        Args:
            ids: Of the images.
            looked: Summary of the look at the same file that chose them.
        """
        kept, crowds, objects = [], 0, 0
        for place, image in enumerate(self.images):
            if image.id in ids:
                kept.append(place)
                crowds += sum(annotation.crowd for annotation in image.annotations)
                objects += len(image.annotations)
        summary = replace(
            self.summary.merged(looked), images=len(kept), objects=objects - crowds, crowds=crowds
        )
        if isinstance(self.images, DiskList):
            images: Sequence[ImageRecord] = self.images.take(np.array(kept, dtype=np.int64))
        else:
            images = tuple(self.images[n] for n in kept)
        return replace(self, images=images, summary=summary)


def read_categories(data: Path, split: str) -> tuple[Category, ...]:
    """Read only the categories of a split.

    Raises:
        DataError: The file can't be read.
    """
    return _read_categories(_read_document(data, annotation_file(data, split))["categories"], [])


def annotation_file(data: Path, split: str) -> Path:
    """Return the path of the annotations of a split."""
    return data / "annotations" / f"instances_{split}.json"


def load_coco(
    data: Path, split: str, *, check_pixels: bool = False, config: InputConfig | None = None
) -> CocoData:
    """Read and check one split.

    Args:
        data: Folder with `images/` and `annotations/`.
        split: Names the file `annotations/instances_{split}.json`.
        check_pixels: Decode every image to find truncated ones. Without it only headers are read,
            and some images of more than 8 bits.
        config: Of the run; images that its settings can't take are left out.

    Raises:
        DataError: Folder, file or keys are missing, the JSON is unreadable, or no usable image or
            object is left.
    """
    path = annotation_file(data, split)
    document = _read_document(data, path)
    problems: list[Problem] = []
    categories = _read_categories(document["categories"], problems)
    index_of_category = {category.id: index for index, category in enumerate(categories)}
    raw_of_image = index_annotations(
        document["annotations"], _image_ids(document["images"]), problems
    )
    images, crowds, objects = DiskListWriter[ImageRecord](), 0, Counter[int]()
    entries = _read_images(document["images"], problems)
    checks = ImageChecks(config, pixels=check_pixels)
    for entry in _check_files(
        data / "images", entries, problems, checks, total=len(document["images"])
    ):
        annotations = tuple(
            annotation
            for own, raw in raw_of_image.of(entry.id)
            if (annotation := _read_annotation(own, raw, entry, index_of_category, problems))
        )
        images.add(replace(entry, annotations=annotations))
        crowds += sum(annotation.crowd for annotation in annotations)
        objects.update(each.category for each in annotations if not each.crowd)
    found = images.finish()
    if not objects:
        cause = f"; all {crowds:,} are crowds: set iscrowd to 0 for single objects"
        reasons = describe_problems(problems) if problems else ""
        raise DataError(
            f"{path}: no usable {'object' if found else 'image'} is left"
            f"{cause if crowds else ''}; repair the data. {reasons}"
        )
    summary = SplitSummary(
        split=split,
        listed_images=len(document["images"]),
        listed_objects=len(document["annotations"]),
        images=len(found),
        objects=objects.total(),
        crowds=crowds,
        problems=count_problems(problems),
    )
    return CocoData(
        data,
        split,
        categories,
        found,
        tuple(problems),
        tuple(objects[index] for index in range(len(categories))),
        summary,
        checks.recommended(),
    )


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
        where = f"category {position_or_id(entry, position)}"
        fields = read_integers(entry, ("id",))
        if isinstance(fields, str):
            problems.append(Problem("category", "malformed_category", where, fields))
        elif (name := read_name(entry.get("name"))) is None:
            detail = f"name is {quote(entry.get('name'))}; give a text"
            problems.append(Problem("category", "malformed_category", where, detail))
        elif fields["id"] in names:
            detail = "only the first is used"
            problems.append(Problem("category", "duplicate_category_id", where, detail))
        else:
            names[fields["id"]] = name
            if name != entry["name"]:
                detail = f"half a character in {quote(entry['name'])}; replaced"
                problems.append(Problem("category", "bad_category_name", where, detail, kept=True))
    for name, count in Counter(names.values()).items():
        if count > 1:
            detail = f"{count} categories have this name; kept apart by id"
            where = f"category {name!r}"
            problems.append(
                Problem("category", "duplicate_category_name", where, detail, kept=True)
            )
    return tuple(Category(key, names[key]) for key in sorted(names))


def _image_ids(raw: Sequence[Any]) -> set[int]:
    """Return the ids of all images that have one, usable or not."""
    entries = (read_integers(entry, ("id",)) for entry in raw)
    return {fields["id"] for fields in entries if not isinstance(fields, str)}


def _read_images(raw: Sequence[Any], problems: list[Problem]) -> Iterator[ImageRecord]:
    """Yield records, still without annotations, that make sense on their own."""
    ids: set[int] = set()
    names: set[str] = set()
    for position, entry in enumerate(raw):
        where = f"image {position_or_id(entry, position)}"
        fields = read_integers(entry, ("id", "width", "height"))
        if isinstance(fields, str):
            problems.append(Problem("image", "malformed_image", where, fields))
            continue
        image_id, width, height = fields.values()
        name = read_file_name(entry.get("file_name"))
        if name is None:
            detail = f"file_name is {quote(entry.get('file_name'))}; give a text"
            problems.append(Problem("image", "malformed_image", where, detail))
            continue
        where = f"{where} ({name})"
        if min(width, height) < 1:
            detail = f"size {width}x{height} leaves no pixel"
            problems.append(Problem("image", "malformed_image", where, detail))
        elif image_id in ids:
            problems.append(Problem("image", "duplicate_image_id", where, "only the first is used"))
        elif leaves_folder(name):
            problems.append(Problem("image", "unsafe_file_name", where, "leads out of images/"))
        elif name in names:
            detail = "another image has this file; only the first is used"
            problems.append(Problem("image", "duplicate_file_name", where, detail))
        else:
            yield ImageRecord(image_id, name, width, height, ())
        ids.add(image_id)
        names.add(name)


def _check_files(
    folder: Path,
    records: Iterator[ImageRecord],
    problems: list[Problem],
    checks: ImageChecks,
    *,
    total: int,
) -> Iterator[ImageRecord]:
    """Yield the records whose file exists, opens and has the size in the JSON."""

    def check(record: ImageRecord) -> list[Problem]:
        return checks.check(folder / record.file_name, *record.where_and_hw)

    with (
        ThreadPoolExecutor(_READ_THREADS) as pool,
        progress_bar(total=total, desc="checking images", unit="image") as progress,
    ):
        while some := list(islice(records, _CHECKED_TOGETHER)):
            for record, found in zip(some, pool.map(check, some), strict=True):
                progress.update()
                problems.extend(found)
                if all(problem.kept for problem in found):
                    yield record
    problems.extend(checks.finish())


def _read_annotation(
    annotation_id: int,
    raw: dict[str, Any],
    image: ImageRecord,
    index_of_category: dict[int, int],
    problems: list[Problem],
) -> Annotation | None:
    """Check one annotation; None after appending the reason to `problems`."""
    where = f"annotation {annotation_id} (image {image.id}, {image.file_name})"
    category_id = read_integer(raw["category_id"])
    category = None if category_id is None else index_of_category.get(category_id)
    if category is None:
        detail = f"category {category_id} is not in the list of categories"
        problems.append(Problem("object", "unknown_category", where, detail))
        return None
    crowd = read_flag(raw.get("iscrowd"))
    if crowd is None:
        detail = f"iscrowd is {quote(raw['iscrowd'])}; give 0, or 1 for a region of many objects"
        problems.append(Problem("object", "bad_iscrowd", where, detail))
        return None
    try:
        outline = read_outline(raw, (image.height, image.width), crowd=crowd)
    except OutlineError as error:
        problems.append(Problem("object", error.kind, where, error.detail))
        return None
    problems.extend(
        Problem("object", kind, where, detail, kept=True) for kind, detail in outline.notes
    )
    return Annotation(
        id=annotation_id,
        category=category,
        parts=outline.parts,
        bbox=outline.bbox,
        area=outline.area,
        crowd=crowd,
        segmentation=outline.segmentation,
    )
