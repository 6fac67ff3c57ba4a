"""What every reader of this folder returns, and how it finds files."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polarmask.data.find_images import is_hidden, suffixes, walk
from polarmask.data.summary import Item, Problem
from polarmask.errors import DataError


@dataclass(frozen=True, slots=True)
class SourceObject:
    """One object of an image."""

    category: str
    segmentation: Any
    """As COCO has it: a list of polygons x, y, x, y, ... in pixels, or an RLE."""
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One annotated image of the source."""

    path: Path
    width: int
    """In pixels, as stored in the file."""
    height: int
    objects: tuple[SourceObject, ...]
    split: str | None = None
    """train or val, if the source says so."""


@dataclass
class Source:
    """All that a reader found; images come one by one, because their masks may not fit together."""

    kind: str
    """Name of the format, for people."""
    images: Iterable[SourceImage]
    category_ids: Mapping[str, int] = field(default_factory=dict)
    """Ids to keep, by name; empty numbers the categories from 1."""
    problems: list[Problem] = field(default_factory=list)
    """What is not imported; grows while `images` is read."""

    def leave_out(self, item: Item, kind: str, where: object, detail: str) -> None:
        """Record that something is not imported."""
        self.problems.append(Problem(item, kind, str(where), detail))


_SPLIT_WORD = re.compile(r"(?:(?<![A-Za-z])(?:mini)?(?i:train|val|test)|Train|Val|Test)")
"""Where a word begins: `oval` and `latest` say nothing."""


def image_files(folder: Path) -> list[Path]:
    """Return all image files below a folder, sorted, hidden ones left out.

    Raises:
        DataError: The folder does not exist.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    return [path for path in visible_files(folder) if path.suffix.lower() in suffixes()]


def visible_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, sorted; hidden files and macOS's copies are left out."""
    for path in sorted(walk(folder)):
        if path.is_file() and not is_hidden(path.relative_to(folder)):
            yield path


def split_of(path: Path | str) -> str | None:
    """Return the split that a folder or file name says: `train2017`, `valid`, `instances_val`."""
    for part in reversed(Path(path).parts):
        words = {found.lower() for found in _SPLIT_WORD.findall(part)}
        if words:
            return "train" if any(word.endswith("train") for word in words) else "val"
    return None
