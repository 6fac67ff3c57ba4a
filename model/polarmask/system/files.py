"""Files and folders: atomic writes (temporary name, fsync, rename), and the one hash scheme.

A file is named by the sha256 of its bytes, a folder by the sha256 over its files' names and hashes.
"""

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import SEEK_END, FileIO
from pathlib import Path, PurePosixPath
from typing import Self


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on failure it goes.

    Works for files and for folders (a folder replaces an older one).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)  # a container that was killed comes back with the same process id
    try:
        yield temporary
        _sync(temporary)
        _replace(path, temporary)
    finally:
        _remove(temporary)


def _replace(path: Path, new: Path) -> None:
    """Move `new` to `path`; an older folder stays whole until the new one is there."""
    if new.is_dir() and path.exists():
        old = new.with_suffix(".old")
        _remove(old)
        path.replace(old)
        try:
            new.replace(path)
        except OSError:
            old.replace(path)
            raise
        _remove(old)
    else:
        new.replace(path)
    _sync_one(path.parent)


def _remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; what UTF-8 can't hold is written as `printable` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def printable(text: str) -> str:
    r"""Return a text that any program can read: half characters become escapes such as `\udce9`.

    Python reads bytes of file names that are no UTF-8 as such halves.
    """
    return text.encode("utf-8", "backslashreplace").decode()


class GrowingJson:
    """A JSON file of a list that grows: whole JSON after each entry, whatever ends the process.

    The first entry replaces an older file.
    """

    _END = b"\n]"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def append(self, entry: object) -> None:
        """Add an entry.

        Raises:
            OSError: There is no room for it; the entries before it stay.
        """
        text = json.dumps(entry, indent=1)
        if self._file is None:
            write_text(self._path, f"[\n{text}{self._END.decode()}")
            self._file = FileIO(self._path, "r+")
            return
        place = self._file.seek(-len(self._END), SEEK_END)
        new = f",\n{text}".encode() + self._END
        # One call, so that nothing can come between the entry and the end of the list.
        written = self._file.write(new)
        if written < len(new):
            self._file.seek(place)
            self._file.write(self._END)
            self._file.truncate()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def sha256_of_file(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path) -> dict[str, str]:
    """Return the hex digest of every file in a folder, by path within it, with slashes, sorted."""
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    names = sorted(paths)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests = threads.map(sha256_of_file, (paths[name] for name in names))
        return dict(zip(names, digests, strict=True))


def tree_sha256(files: Mapping[str, str]) -> str:
    """Return the hex digest of a folder, given what `sha256_of_files` returns for it."""
    listing = "".join(f"{name}\0{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(listing.encode(errors="surrogatepass")).hexdigest()


def check_zip(archive: zipfile.ZipFile, *, size: int) -> None:
    """Raise ValueError if a zip of `size` bytes unpacks to more: we store files as they are."""
    if sum(entry.file_size for entry in archive.infolist()) > size:
        raise ValueError("it unpacks to more than its size; this project packs without compression")


def leaves_folder(name: str) -> bool:
    """Return whether a relative path from a file could point outside of its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts or bool(set(name) & {*"\\\0"})


def _sync(path: Path) -> None:
    """Flush a file, or a folder and all it holds, to disk."""
    for inner in path.rglob("*") if path.is_dir() else ():
        _sync_one(inner)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    """Flush a file, or a folder's list of names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
