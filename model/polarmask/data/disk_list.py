"""A list on disk: written once, read item by item, in any process.

Annotations of a large data set would fill the memory of every process that trains on it. A
`DiskList` keeps its items in a temporary file, and 16 bytes of each in memory.
"""

import contextlib
import os
import pickle
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from polarmask.errors import DataError

Item = TypeVar("Item")


class DiskList(Sequence[Item]):
    """Items in a temporary file, in the order in which they were added.

    The file is removed with the last of the list that `finish` returned and the lists taken from
    it. A pickled copy reads the same file and must not outlive them. Reading an item unpickles it:
    it is a new object each time.
    """

    def __init__(
        self, file: "_File", start_N: NDArray[np.int64], size_N: NDArray[np.int64]
    ) -> None:
        self._file = file
        self._start_N = start_N
        self._size_N = size_N

    def __len__(self) -> int:
        return len(self._start_N)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> "DiskList[Item]": ...
    def __getitem__(self, index: int | slice) -> "Item | DiskList[Item]":
        if isinstance(index, slice):
            return DiskList(self._file, self._start_N[index].copy(), self._size_N[index].copy())
        data = self._file.read(int(self._start_N[index]), int(self._size_N[index]))
        item: Item = pickle.loads(data)  # noqa: S301  # this process or its parent wrote it
        return item

    def take(self, indices: NDArray[np.int64]) -> "DiskList[Item]":
        """Return a list of some of the items, in that order."""
        return DiskList(self._file, self._start_N[indices], self._size_N[indices])


class DiskListWriter(Generic[Item]):
    """Writes the items of a new `DiskList`."""

    def __init__(self) -> None:
        self._start, self._size = array("q"), array("q")
        self._end = 0
        with _disk_errors():
            descriptor, name = tempfile.mkstemp(prefix="polarmask-", suffix=".list")
            self._out = os.fdopen(descriptor, "wb", buffering=1 << 20)
        weakref.finalize(self, self._out.close)
        self._file = _File(Path(name), owned=True)

    def add(self, item: Item) -> None:
        """Append an item that can be pickled.

        Raises:
            DataError: The folder for temporary files is full.
        """
        data = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
        with _disk_errors():
            self._out.write(data)
        self._start.append(self._end)
        self._size.append(len(data))
        self._end += len(data)

    def finish(self) -> DiskList[Item]:
        """Return the list; nothing can be added afterwards.

        Raises:
            DataError: The folder for temporary files is full.
        """
        with _disk_errors():
            self._out.close()
        start_N, size_N = (np.array(each, dtype=np.int64) for each in (self._start, self._size))
        return DiskList(self._file, start_N, size_N)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"annotations can't be kept in the folder for temporary files ({error}); make room "
            "there, or set TMPDIR to another folder"
        ) from error


class _File:
    """The file behind a list and the lists taken from it; removed with the last of them."""

    def __init__(self, path: Path, *, owned: bool = False) -> None:
        self._path = path
        self._descriptor: int | None = None
        if owned:
            weakref.finalize(self, _remove, path, os.getpid())

    def read(self, start: int, size: int) -> bytes:
        if self._descriptor is None:
            with _disk_errors():
                self._descriptor = os.open(self._path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return os.pread(self._descriptor, size, start)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_descriptor": None}


def _remove(path: Path, process: int) -> None:
    # A forked child holds a copy of the object and is not the one to remove the file.
    if os.getpid() == process:
        path.unlink(missing_ok=True)
