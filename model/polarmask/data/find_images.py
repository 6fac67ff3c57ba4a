"""Which files are images: those given, and all that Pillow reads below given folders."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn

from PIL import Image

from polarmask.errors import DataError

logger = logging.getLogger(__name__)

_NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}
"""Pillow only recognises these, or starts another program to read them."""


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Return files as given, and all image files below given folders; each once.

    What is left out below a folder is logged: hidden files, also those that macOS adds to archives,
    and files that are no images by their suffix.

    Raises:
        DataError: A path does not exist, or no image is found.
        OSError: A folder can't be read.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _below(path)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist; give image files or folders")
    if not found:
        raise DataError("no image was found; give image files, or folders with some")
    return list(dict.fromkeys(found))


def _below(folder: Path) -> list[Path]:
    files = sorted(walk(folder))
    shown = [path for path in files if not is_hidden(path.relative_to(folder))]
    images = [path for path in shown if path.suffix.lower() in suffixes()]
    if len(shown) < len(files):
        _note(folder, f"{len(files) - len(shown)} hidden files (.NAME, __MACOSX)")
    others = Counter(p.suffix or "no suffix" for p in shown if p.suffix.lower() not in suffixes())
    if others:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(5))
        _note(folder, f"{others.total()} files that are no images by their suffix ({kinds})")
    return images


def _note(folder: Path, what: str) -> None:
    logger.warning("note: below %s %s are left out", folder, what)


def is_hidden(path: Path) -> bool:
    """Return whether a path below a folder is hidden, or what macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, linked folders included; each folder once."""
    seen = set()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from (Path(parent, name) for name in names)


def _raise(error: OSError) -> NoReturn:
    raise error


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow decodes, in lower case, with their dot."""
    Image.init()
    decoded = Image.OPEN.keys() - _NOT_DECODED
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in decoded)
