"""The images of a source to a COCO folder: chooses the split, links the files, writes the JSON."""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarmask.data.summary import describe_problems
from polarmask.errors import DataError
from polarmask.importing.source import Source, SourceImage
from polarmask.system.files import atomic_path, write_text
from polarmask.system.progress_bar import progress_bar

SPLITS = ("train", "val")

_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_FEWEST_GROUPS = 5
"""Names that differ in their last number only make groups; with fewer groups they are no guide."""


@dataclass(frozen=True)
class SplitChoice:
    """Which images became the val split, and why."""

    val: frozenset[Path]
    reason: str


def write_coco(
    source: Source, out: Path, *, val_share: float | None = None, copy: bool = False
) -> SplitChoice:
    """Write `images/` and `annotations/instances_{train,val}.json`; all or nothing.

    Args:
        source: What to import.
        out: A folder that does not exist yet.
        val_share: Share of the images that becomes the val split, above 0 and below 1; None takes
            the splits of the source, or a fifth if it has none.
        copy: Copy image files; otherwise they are linked.

    Raises:
        DataError: `out` exists, nothing can be imported, or a split would be empty.
    """
    if out.exists():
        raise DataError(f"{out} exists; give another --out, or delete it first")
    images = list(_once(progress_bar(source.images, desc="reading", unit="image"), source))
    if not any(image.objects for image in images):
        raise DataError(f"no image with an object was found. {describe_problems(source.problems)}")
    choice = choose_split(images, val_share)
    for split, is_val in zip(SPLITS, (False, True), strict=True):
        if not any(each.objects for each in images if (each.path in choice.val) == is_val):
            raise DataError(
                f"no image of the {split} split has an object (split: {choice.reason}); "
                "give another share with --val"
            )
    names = _names([image.path for image in images])
    found = {each.category for image in images for each in image.objects}
    id_of = source.category_ids or {name: n for n, name in enumerate(sorted(found), start=1)}
    with atomic_path(out) as folder:
        for image, name in zip(images, names, strict=True):
            target = folder / "images" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copyfile(image.path, target)
            else:
                target.symlink_to(image.path.resolve())
        for split in SPLITS:
            chosen = [
                (image, name)
                for image, name in zip(images, names, strict=True)
                if (image.path in choice.val) == (split == "val")
            ]
            path = folder / "annotations" / f"instances_{split}.json"
            write_text(path, json.dumps(_document(chosen, id_of)))
    return choice


def _once(images: Iterable[SourceImage], source: Source) -> Iterator[SourceImage]:
    """Yield the images whose file is new."""
    seen: set[Path] = set()
    for image in images:
        if image.path in seen:
            detail = "its annotations are there twice; only the first are used"
            source.leave_out("image", "duplicate_image", image.path, detail)
        else:
            seen.add(image.path)
            yield image


def choose_split(images: Sequence[SourceImage], val_share: float | None) -> SplitChoice:
    """Choose the val images: as the source says, or whole groups of similar names by chance."""
    known = {image.path for image in images if image.split == "val"}
    if val_share is None and known and len(known) < len(images):
        return SplitChoice(frozenset(known), "as the source says")
    if len(images) < 2:
        raise DataError("one image can't be split into train and val; import at least two")
    share = 0.2 if val_share is None else val_share
    groups = _groups([image.path for image in images])
    # By a hash of the name: most images stay in their split when others are added.
    order = sorted(groups, key=lambda group: (_hash(_shown(group)), group))
    # At least the smallest group, but no group that is far more than the share.
    wanted = max(round(share * len(images)), min(len(group) for group in groups.values()))
    val: set[Path] = set()
    for name in order:
        if len(val) + len(groups[name]) <= min(wanted, len(images) - 1):
            val |= set(groups[name])
    alone = len(groups) == len(images)
    how = "images" if alone else f"whole groups of names, such as {_shown(order[0])}"
    return SplitChoice(frozenset(val), f"{len(val) / len(images):.0%} by chance, {how}")


def _groups(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Group names that differ in their last number only: tiles of one slide, frames of one film.

    Without such names, or with few groups, each image is a group.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[str(path.parent / _LAST_NUMBER.sub("*", path.stem))].append(path)
    if _FEWEST_GROUPS <= len(groups) < len(paths):
        return groups
    return {str(path): [path] for path in paths}


def _shown(group: str) -> str:
    return Path(group).name


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _names(paths: Sequence[Path]) -> list[str]:
    """Return names below `images/`: the paths below their common folder."""
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _document(
    images: Sequence[tuple[SourceImage, str]], id_of: Mapping[str, int]
) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (image, name) in enumerate(images, start=1):
        size = {"width": image.width, "height": image.height}
        entries.append({"id": image_id, "file_name": name, **size})
        annotations += [
            {
                "id": len(annotations) + number,
                "image_id": image_id,
                "category_id": id_of[each.category],
                "iscrowd": int(each.crowd),
                "segmentation": each.segmentation,
            }
            for number, each in enumerate(image.objects, start=1)
        ]
    return {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in id_of.items()],
    }
