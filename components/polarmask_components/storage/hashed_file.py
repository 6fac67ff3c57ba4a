"""A file that is received in blocks and hashed on the way."""

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Self

from polarmask_components.errors import DamagedObjectError


class HashedFile:
    """Context that writes a file from its start on; it stays only if it has the right hash.

    Without a hash to compare with, any content is right.
    """

    def __init__(self, path: Path, sha256: str | None, *, where: str) -> None:
        self.size = 0
        """Bytes received."""
        self.expected_size: int | None = None
        """Bytes of the whole, once known."""
        self._hash = hashlib.sha256()
        self._expected = sha256
        self._where = where
        self._path = path

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("wb")
        return self

    def add(self, block: bytes) -> None:
        """Append a block."""
        self._file.write(block)
        self._hash.update(block)
        self.size += len(block)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._file.close()
        found = self._hash.hexdigest()
        is_right = self._expected in (None, found)
        if kind is not None or not is_right:
            self._path.unlink()
        if kind is None and not is_right:
            raise DamagedObjectError(
                f"{self._where} is not what was stored: {self.size} bytes with sha256 {found}, "
                f"not {self._expected}"
            )
