"""What a person sees of a local run: one line a step, the rest goes to a log file."""

import io
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from polarmask_pipelines.results import describe
from polarmask_pipelines.watch import TaskResult

_TAIL_LINES = 200
_INDENT = "    "
"""What KFP puts before each line of a step."""
_NOISE = re.compile(r'\[KFP Executor|\s*[][{}"]')
"""KFP's own words inside a step, and the JSON it dumps."""
_PROGRESS = re.compile(r"step=(\d+)/(\d+) ?(.*)")
_SHOWN = ("loss=", "img_s=", "eta=")
_BAR_CELLS = 20
_SECONDS_PER_LINE = 20
"""Between lines of progress where they can't replace each other."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Console:
    """Prints a line when a step ends.

    On a terminal the running step's last words stand below; elsewhere progress gets a line now and
    then.

    Attributes:
        results: Of the steps that ended, in order.
        error: The error of the first step that failed, or "".
    """

    def __init__(self, log: TextIO, screen: TextIO) -> None:
        self.results: list[TaskResult] = []
        self.error = ""
        self._log = log
        self._screen = screen
        self._is_terminal = screen.isatty()
        self._running = ""
        self._said = 0.0
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def say(self, text: str = "") -> None:
        """Print a line for the person."""
        self._clear()
        self._screen.write(f"{text}\n")
        self._screen.flush()

    def task_begins(self, name: str) -> None:
        """Start the step's live line."""
        self._running = name
        self._said = time.monotonic()
        self._tail.clear()
        self._show("")

    def task_ends(self, result: TaskResult) -> None:
        """Print the step's line."""
        self._running = ""
        self.results.append(result)
        if result.status == "failed":
            self.error = self.error or error_in(list(self._tail))
        told = {"failed": "FAILED", "reused": "reused"}.get(result.status, "")
        words = ": ".join(part for part in (told, describe(result)) if part)
        self.say(f"{result.name:<18} {result.seconds:6.1f} s  {words}".rstrip())

    def hear(self, line: str) -> None:
        """Take a line that KFP or a step printed."""
        self._log.write(line + "\n")
        self._log.flush()
        if line.startswith(_INDENT) and line.strip():
            words = _COLOUR.sub("", line).removeprefix(_INDENT).rstrip()
            self._tail.append(words)
            if not _NOISE.match(words):
                self._show(words)

    def _show(self, words: str) -> None:
        if not self._running:
            return
        progress = _PROGRESS.search(words)
        rest = ""
        if progress:
            rest = " ".join(word for word in progress[3].split() if word.startswith(_SHOWN))
        if not self._is_terminal:
            now = time.monotonic()
            if progress and now - self._said >= _SECONDS_PER_LINE:
                self._said = now
                self.say(f"{self._running:<18} step {progress[1]}/{progress[2]} {rest}".rstrip())
            return
        if progress:
            done, total = int(progress[1]), int(progress[2])
            filled = _BAR_CELLS * done // max(1, total)
            bar = "#" * filled + "." * (_BAR_CELLS - filled)
            words = f"[{bar}] {done}/{total} {rest}"
        width = shutil.get_terminal_size().columns - 1
        self._clear()
        self._screen.write(f"{self._running:<18} {words}"[:width])
        self._screen.flush()

    def _clear(self) -> None:
        if self._is_terminal:
            self._screen.write("\r\x1b[K")


@contextmanager
def console(log: Path) -> Iterator[Console]:
    """Send what this process prints to a log file; the console alone writes to the screen."""
    screen, errors = sys.stdout, sys.stderr
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        person = Console(file, screen)
        sys.stdout = sys.stderr = _Lines(person)
        try:
            yield person
        finally:
            sys.stdout, sys.stderr = screen, errors


class _Lines(io.TextIOBase):
    """A stream that hands whole lines to a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._console.hear(line)
        return len(text)


def error_in(lines: list[str]) -> str:
    """Return the message of the last exception in a step's output, or its last lines."""
    starts = [n for n, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    if not starts:
        return "\n".join(lines[-5:])
    after = lines[starts[-1] + 1 :]
    first = next((n for n, line in enumerate(after) if not line.startswith(" ")), 0)
    message = "\n".join(after[first:])
    name, separator, rest = message.partition(": ")
    return f"{name.rpartition('.')[2]}{separator}{rest}"
