"""Many small jobs at once, with their progress in the log."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import TypeVar

logger = logging.getLogger(__name__)

_THREADS = 16
_SECONDS_PER_LINE = 10.0
_GIGABYTE = 1e9

Item = TypeVar("Item")


def in_parallel(act: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Act on all items, several at once; the first error ends it and is raised.

    Unlike an executor's, threads that hang are not waited for: they end with the process.
    """
    todo: SimpleQueue[Item] = SimpleQueue()
    for item in items:
        todo.put(item)
    stop = threading.Event()
    ended: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            while not stop.is_set():
                try:
                    item = todo.get_nowait()
                except Empty:
                    break
                act(item)
        except Exception as error:  # raised again in the caller's thread
            ended.put(error)
        else:
            ended.put(None)

    for _ in range(_THREADS):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(_THREADS):
            if (error := ended.get()) is not None:
                raise error
    finally:
        stop.set()


class Progress:
    """Files and bytes that are done, as log lines. Threads share it."""

    def __init__(self, what: str, files: int, size: int) -> None:
        self._what = what
        self._files = files
        self._size = size
        self._files_done = 0
        self._size_done = 0
        self._lock = threading.Lock()
        self._began = self._logged = time.monotonic()

    def add(self, *, files: int = 0, size: int = 0) -> None:
        """Count what is done; sizes in bytes."""
        with self._lock:
            self._files_done += files
            self._size_done += size
            is_time = time.monotonic() - self._logged >= _SECONDS_PER_LINE
        if is_time:
            self._log()

    def end(self) -> None:
        """Log the totals."""
        self._log()

    def _log(self) -> None:
        self._logged = time.monotonic()
        seconds = max(self._logged - self._began, 1e-3)
        logger.info(
            "%s: %d of %d files, %.3f of %.3f GB, %.1f MB/s",
            self._what,
            self._files_done,
            self._files,
            self._size_done / _GIGABYTE,
            self._size / _GIGABYTE,
            self._size_done / seconds / 1e6,
        )
