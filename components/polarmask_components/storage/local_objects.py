"""Objects as files of a folder: a lock to compare, a rename to swap."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarmask.system.files import atomic_path
from polarmask_components.errors import DamagedObjectError, StorageError
from polarmask_components.storage.verify import verified


class LocalObjects:
    """Files below a folder, safe among processes of one machine. See `objects.Objects`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.where = str(self._folder)

    def uri(self, name: str) -> str:
        """Return the absolute path of an object."""
        return str(self._folder / name)

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return content and its hash, or None."""
        with self._explained():
            try:
                data = (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if there is none."""
        path = self._folder / name
        with self._explained():
            return path.stat().st_size if path.is_file() else None

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects below a folder, sorted."""
        with self._explained():
            found = [path for path in (self._folder / folder).rglob("*") if path.is_file()]
        names = (path.relative_to(self._folder).as_posix() for path in found)
        return sorted(name for name in names if "/." not in f"/{name}")  # half-written ones

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this hash, or if there is none; return whether it did."""
        with self._locked():
            found = self.read(name)
            if (found[1] if found else None) != expected_tag:
                return False
            with atomic_path(self._folder / name) as temporary:
                temporary.write_bytes(data)
            return True

    def create(self, name: str, file: Path) -> bool:
        """Store a file unless there is an object of this name; return whether it was stored."""
        with self._locked():
            if (self._folder / name).exists():
                return False
            with atomic_path(self._folder / name) as temporary:
                shutil.copyfile(file, temporary)
            return True

    def download(self, name: str, to: Path, *, sha256: str | None) -> None:
        """Copy an object to a file, which is whole and verified afterwards or does not exist.

        Raises:
            DamagedObjectError: There is no such object, or it has other content.
        """
        source = self._folder / name
        if not source.is_file():
            raise DamagedObjectError(f"{source} does not exist")
        with self._explained(), verified(to, sha256, where=str(source)):
            shutil.copyfile(source, to)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self.where}: {error}; give a folder that this user may write to"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder alone; the lock ends with its process, however that ends."""
        with self._explained():
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
