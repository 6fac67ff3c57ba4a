"""A large JSON object, one list item at a time, as Python's own json module reads it.

NaN, huge numbers and encodings are handled as by `json.loads`; memory holds no more of the text
than the largest item needs.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from polarmask.system.progress_bar import progress_bar

_CHUNK = 1 << 20
"""Characters to read at a time, at first; items that are larger double it."""

_LONGEST_JOINT = 3
"""Characters after a number that can show that it continues: "e", a sign and a digit."""


def read_lists(path: Path, keys: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield the items of lists in a JSON object: key of the list and item, in file order.

    Args:
        path: File with a JSON object.
        keys: Keys of lists to read; other values are skipped.

    Raises:
        ValueError: No JSON, or a value of `keys` is absent, there twice or no list; the message
            names the place.
        OSError: The file can't be read.
        RecursionError: An item is nested too deeply.
    """
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    with (
        path.open(encoding=encoding, errors="surrogatepass", newline="") as file,
        progress_bar(
            total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True
        ) as progress,
    ):
        yield from _Reader(file, progress).lists(set(keys))


class MissingListError(ValueError):
    """The object has no list of a wanted name."""

    def __init__(self, key: str) -> None:
        super().__init__(f"no list {key!r}")
        self.key = key


class _Reader:
    """A window that moves over the text."""

    def __init__(self, file: TextIO, progress: "tqdm[Any]") -> None:
        self._file = file
        self._progress = progress
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self._passed = 0

    def lists(self, keys: set[str]) -> Iterator[tuple[str, Any]]:
        missing = set(keys)
        if self._next() == "{":
            self._at += 1
            for key in self._members():
                if key not in keys:
                    self._value()
                elif key not in missing:
                    raise self._error(f"a second {key!r}")
                elif self._next() == "[":
                    missing.remove(key)
                    self._at += 1
                    yield from ((key, item) for item in self._items())
                else:
                    raise MissingListError(key)
        else:
            self._value()
        if self._next():
            raise self._error("extra data")
        for key in sorted(missing, reverse=True):  # "images" first, as people write them
            raise MissingListError(key)

    def _members(self) -> Iterator[str]:
        """Yield keys; the caller reads the value of each before taking the next."""
        for key in self._separated("}"):
            if not isinstance(key, str):
                raise self._error("a key that is no text")
            if self._next() != ":":
                raise self._error("no ':' after a key")
            self._at += 1
            yield key

    def _items(self) -> Iterator[Any]:
        return self._separated("]")

    def _separated(self, end: str) -> Iterator[Any]:
        if self._next() == end:
            self._at += 1
            return
        while True:
            yield self._value()
            found = self._next()
            if found not in {",", end}:
                raise self._error(f"neither ',' nor {end!r}")
            self._at += 1
            if found == end:
                return

    def _value(self) -> Any:  # noqa: ANN401  # whatever the file holds
        wanted = _CHUNK
        while True:
            self._next()
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise self._error(error.msg, error.pos) from None
            else:
                # Of a number the window may hold the first part: "1", followed by "e+" and digits.
                if len(self._text) - end >= _LONGEST_JOINT or self._ended:
                    self._at = end
                    return value
            self._read(wanted)
            wanted *= 2

    def _next(self) -> str:
        """Skip white space; return the character there, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\n\r":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read(_CHUNK)

    def _read(self, count: int) -> None:
        more = self._file.read(count)
        self._ended = not more
        self._passed += self._at
        self._text = self._text[self._at :] + more
        self._at = 0
        self._progress.update(len(more))

    def _error(self, reason: str, position: int | None = None) -> ValueError:
        at = self._passed + (self._at if position is None else position)
        return ValueError(f"{reason} at character {at}")
