"""Many small jobs at once, and a line now and then for who waits for them."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import TypeVar

logger = logging.getLogger(__name__)

_AT_ONCE = 16
_SECONDS_PER_LINE = 10.0
_GIGABYTE = 1e9

Item = TypeVar("Item")


def in_parallel(act: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Act on all items, several at once; the first error ends it.

    Threads that hang hold nobody up: they end with the process.
    """
    left = iter(items)
    lock, stop = threading.Lock(), threading.Event()
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(left, _NONE)
                if isinstance(item, _None):
                    break
                act(item)
        except Exception as error:
            ended.put(error)
        else:
            ended.put(None)

    for _ in range(_AT_ONCE):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(_AT_ONCE):
            error = ended.get()
            if error is not None:
                raise error
    finally:
        stop.set()


class _None:
    pass


_NONE = _None()


class Progress:
    """Files and bytes that are done, as log lines. Threads share it."""

    def __init__(self, what: str, files: int, size: int) -> None:
        self._what = what
        self._files = files
        self._size = size
        self._files_done = 0
        self._size_done = 0
        self._lock = threading.Lock()
        self._began = self._told = time.monotonic()

    def add(self, *, files: int = 0, size: int = 0) -> None:
        """Note what is done; sizes in bytes."""
        with self._lock:
            self._files_done += files
            self._size_done += size
            is_time = time.monotonic() - self._told >= _SECONDS_PER_LINE
        if is_time:
            self._tell()

    def end(self) -> None:
        """Say that all is done."""
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = max(self._told - self._began, 1e-3)
        logger.info(
            "%s: %d of %d files, %.3f of %.3f GB, %.1f MB/s",
            self._what,
            self._files_done,
            self._files,
            self._size_done / _GIGABYTE,
            self._size / _GIGABYTE,
            self._size_done / seconds / 1e6,
        )
