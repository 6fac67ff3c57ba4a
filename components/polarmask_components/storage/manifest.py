"""Which files a folder has to hold, with hash and size."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polarmask.system.files import leaves_folder, sha256_of_file, sha256_of_files
from polarmask_components.errors import StorageError


@dataclass(frozen=True)
class FileFacts:
    """What a file has to be."""

    sha256: str
    size: int
    """Bytes."""

    def fit(self, path: Path) -> bool:
        """Return whether a file is this one."""
        is_there = path.is_file() and path.stat().st_size == self.size
        return is_there and sha256_of_file(path) == self.sha256


Manifest = Mapping[str, FileFacts]
"""By path within the folder, with slashes."""


def manifest_of(folder: Path) -> dict[str, FileFacts]:
    """Describe all files of a folder.

    Raises:
        StorageError: There are none.
    """
    manifest = {
        name: FileFacts(sha256, (folder / name).stat().st_size)
        for name, sha256 in sha256_of_files(folder).items()
    }
    if not manifest:
        raise StorageError(f"{folder} holds no files: the step before this one left nothing there")
    return manifest


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
    for name in filter(leaves_folder, manifest):
        raise StorageError(f"{name!r} is outside of the folder that it is listed for")
    return manifest
