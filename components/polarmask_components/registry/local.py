"""Registry objects as files of a folder: a lock for comparing, a rename for swapping."""

import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polarmask.system.files import atomic_path
from polarmask_components.errors import RegistryError, UnusableModelError


class LocalObjects:
    """Files below a folder, safe among processes of one machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.where = str(self._folder)

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return content and its hash, or None."""
        with self._explained():
            try:
                data = (self._folder / name).read_bytes()
            except FileNotFoundError:
                return None
        return data, hashlib.sha256(data).hexdigest()

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this tag; tell whether it did."""
        with self._explained(), self._locked():
            found = self.read(name)
            if (found[1] if found else None) != expected_tag:
                return False
            with atomic_path(self._folder / name) as temporary:
                temporary.write_bytes(data)
            return True

    def upload(self, name: str, file: Path) -> None:
        """Copy a file into the folder, as a whole or not at all."""
        with self._explained(), atomic_path(self._folder / name) as temporary:
            shutil.copyfile(file, temporary)

    def download(self, name: str, to: Path) -> None:
        """Copy an object to a file."""
        source = self._folder / name
        if not source.is_file():
            raise UnusableModelError(f"{self.where} holds no {name}; promote another version")
        with self._explained():
            shutil.copyfile(source, to)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(f"{self.where}: {error}; give a folder one may write to") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder alone; the lock ends with its process, however that ends."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
