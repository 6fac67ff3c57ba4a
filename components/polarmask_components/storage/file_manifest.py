"""What files a folder has to hold, to the last byte."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from polarmask.system.files import sha256_of_file
from polarmask_components.errors import StorageError


@dataclass(frozen=True)
class FileFacts:
    """What a file has to be."""

    sha256: str
    size: int
    """Bytes."""


Manifest = Mapping[str, FileFacts]
"""By path within the folder, with slashes."""


def manifest_of(folder: Path) -> dict[str, FileFacts]:
    """Describe all files of a folder.

    Raises:
        StorageError: There are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise StorageError(f"{folder} holds no files: the step before this one left nothing there")
    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(names, threads.map(facts_of_file, paths), strict=True))


def facts_of_file(path: Path) -> FileFacts:
    """Describe one file."""
    return FileFacts(sha256_of_file(path), path.stat().st_size)


def to_plain(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return JSON-ready data."""
    return {name: asdict(facts) for name, facts in manifest.items()}


def from_plain(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, FileFacts]:
    """Read what `to_plain` returned.

    Raises:
        StorageError: It is something else, or names files outside of the folder.
    """
    try:
        manifest = {name: FileFacts(**facts) for name, facts in plain.items()}
    except (AttributeError, TypeError) as error:
        raise StorageError(f"this is no list of files: {error}") from error
    for name in manifest:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise StorageError(f"{name!r} lies outside of the folder that it is listed for")
    return manifest
