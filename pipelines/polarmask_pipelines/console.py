"""What a user sees of a local run: one line per step. All other output goes to a log file."""

import io
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

from polarmask.system.redaction import redact
from polarmask_pipelines.local_runner import TaskResult
from polarmask_pipelines.summary import verdict_in

_TAIL_LINES = 200
_INDENT = "    "
"""KFP's prefix for each line of a step."""
_NOISE = re.compile(r'\[KFP Executor|\s*[][{}"]')
"""KFP's own log lines inside a step, and the JSON it dumps."""
_PROGRESS = re.compile(r"step=(\d+)/(\d+) ?(.*)")
_SHOWN = ("loss=", "img_s=", "eta=")
_BAR_CELLS = 20
_SECONDS_PER_LINE = 20
"""Between lines of progress where a line can't be overwritten."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Console:
    """Prints a line when a step ends.

    A terminal also shows the last output of the running step. Elsewhere a line of training progress
    is printed every 20 s.

    Attributes:
        results: Of the steps that ended, in order.
        error: The error of the first step that failed, or "".
    """

    def __init__(self, log: TextIO, screen: TextIO, *, webhook: str = "") -> None:
        self.results: list[TaskResult] = []
        self.error = ""
        self._log = log
        self._webhook = webhook
        self._screen = screen
        self._is_terminal = screen.isatty()
        self._running = ""
        self._last_progress = 0.0
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def print_line(self, text: str) -> None:
        """Print a line for the user."""
        self._print(f"{text}\n")

    def task_begins(self, name: str) -> None:
        """Start the live line of a step."""
        self._running = name
        self._last_progress = time.monotonic()
        self._tail.clear()
        self._show("")

    def task_ends(self, result: TaskResult) -> None:
        """Print the line of a step."""
        self._running = ""
        self.results.append(result)
        if result.status == "failed":
            self.error = self.error or error_in(list(self._tail))
        status = {"failed": "FAILED", "reused": "reused"}.get(result.status, "")
        outcome = ": ".join(part for part in (status, describe(result)) if part)
        self.print_line(f"{result.name:<18} {result.seconds:6.1f} s  {outcome}".rstrip())

    def receive(self, line: str) -> None:
        """Log a line that KFP or a step printed, and show it on a terminal; secrets are hidden."""
        line = redact(line, self._webhook)
        self._log.write(line + "\n")
        self._log.flush()
        if line.startswith(_INDENT) and line.strip():
            text = _COLOUR.sub("", line).removeprefix(_INDENT).rstrip()
            self._tail.append(text)
            if not _NOISE.match(text):
                self._show(text)

    def _show(self, text: str) -> None:
        if not self._running:
            return
        progress = _PROGRESS.search(text)
        if progress:
            done, total = int(progress[1]), int(progress[2])
            numbers = " ".join(part for part in progress[3].split() if part.startswith(_SHOWN))
        if self._is_terminal:
            if progress:
                filled = _BAR_CELLS * done // max(1, total)
                bar = "#" * filled + "." * (_BAR_CELLS - filled)
                text = f"[{bar}] {done}/{total} {numbers}"
            width = shutil.get_terminal_size().columns - 1
            self._print(f"{self._running:<18} {text}"[:width])
        elif progress and time.monotonic() - self._last_progress >= _SECONDS_PER_LINE:
            self._last_progress = time.monotonic()
            self.print_line(f"{self._running:<18} step {done}/{total} {numbers}".rstrip())

    def _print(self, text: str) -> None:
        """Write over the live line."""
        self._screen.write(f"\r\x1b[K{text}" if self._is_terminal else text)
        self._screen.flush()


def describe(result: TaskResult) -> str:
    """Return the outcome of a step, short enough for its line."""
    if result.status == "failed":
        return ""
    outputs = result.outputs
    facts = outputs["metrics"].metadata if "metrics" in outputs else {}
    match result.name:
        case "preflight":
            return str(outputs["starts_from"])
        case "resolve-data":
            return f"data {outputs['data_hash'][:8]} of commit {outputs['data_commit'][:8]}"
        case "check-changed" | "evaluate-champion":
            return Path(outputs["note"].path).read_text(encoding="utf-8").strip()
        case "ingest-coco":
            facts = outputs["dataset"].metadata
            images, objects = (
                facts[f"train_left_out_{items}"] + facts[f"val_left_out_{items}"]
                for items in ("images", "objects")
            )
            found = f"; {images:g} images and {objects:g} objects left out"
            found = found if images or objects else ""
            return f"{facts['train_images']:g} train and {facts['val_images']:g} val images{found}"
        case "precompute-shards":
            return f"shards {outputs['shards'].metadata['shard']}: {outputs['Output']:g}"
        case "precompute-rays":
            return (
                f"{facts['train_instances']:g} train instances, "
                f"reachable mask IoU {facts['train_upper_bound_iou']:.3f}"
            )
        case "check-champion":
            return str(outputs["Output"])
        case "evaluate":
            return f"mask AP {facts['mask_ap']:.3f}, AP50 {facts['mask_ap50']:.3f}"
        case "gate-model":
            return f"{'passed' if outputs['Output'] else 'STOPPED'}: {verdict_in(outputs)}"
        case "record-stop":
            return f"version {outputs['Output']}, see `polarmask models list`"
        case "measure-engines":
            return f"fastest first: {outputs['Output']}"
        case "deploy-torchserve":
            return f"version {outputs['answer'].metadata['version']} answers at {outputs['Output']}"
    return ""


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


@contextmanager
def console(log: Path, *, webhook: str = "") -> Iterator[Console]:
    """Send what this process prints to a log file; only the console writes to the screen.

    Args:
        log: The file.
        webhook: Address that is to be in neither.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        shown = Console(file, sys.stdout, webhook=webhook)
        lines = _Lines(shown.receive)
        with redirect_stdout(lines), redirect_stderr(lines):
            yield shown


class _Lines(io.TextIOBase):
    """A stream that passes on whole lines."""

    def __init__(self, receive: Callable[[str], None]) -> None:
        self._receive = receive
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._receive(line)
        return len(text)
