"""Progress of a training run: a bar or log lines for people, and `metrics.jsonl`."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from polarmask.system.distributed import is_first
from polarmask.system.files import write_text
from polarmask.system.progress_bar import progress_bar
from polarmask.training.dataset import Batch

logger = logging.getLogger(__name__)

_SECONDS_PER_LOG_LINE = 5.0
_MEASURED_STEPS = 4
"""After the first, which is slower, for the estimate of the time."""


def append_line(path: Path, entry: dict[str, float]) -> None:
    """Add a JSON object as one line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def drop_lines_after(path: Path, step: int) -> list[dict[str, float]]:
    """Drop the lines after a step, which is where the run resumes; return the others."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines if line.endswith("}")]
    kept = [entry for entry in entries if entry["step"] <= step]
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
    return kept


class Progress:
    """A bar on a terminal, a log line every few seconds elsewhere, every step in a file."""

    def __init__(self, path: Path, step: int, total_steps: int, batch_size: int) -> None:
        self.last_loss: float | None = None
        """Loss of the last step; read from the file when a run resumes."""
        self._path = path
        self._step = step
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._started = self._logged = time.monotonic()
        self._first_step = step
        self._first_done = self._started
        self._before = 0.0
        self._bar: tqdm[Any] | None = None
        if is_first() and (kept := drop_lines_after(path, step)):
            self._before = kept[-1]["seconds"]
            self.last_loss = kept[-1]["loss"]

    def seconds(self) -> float:
        """Return the time spent training, including the time before the run was resumed."""
        return self._before + time.monotonic() - self._started

    def watch(self, steps: Iterable[tuple[Batch, ...]]) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of each step, under a progress bar."""
        self._bar = progress_bar(
            steps,
            initial=self._step,
            total=self._total_steps,
            desc="train",
            unit="step",
            delay=0,
            shown=is_first(),
        )
        yield from self._bar

    def record(self, values: dict[str, float]) -> None:
        """Write and show the losses of one step."""
        self._step += 1
        self.last_loss = values["loss"]
        if not is_first() or self._bar is None:
            return
        seconds = round(self.seconds(), 3)
        append_line(self._path, {"step": self._step, "seconds": seconds, **values})
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
        now = time.monotonic()
        self._estimate(self._bar, now)
        done = self._step == self._total_steps
        if self._bar.disable and (done or now - self._logged >= _SECONDS_PER_LOG_LINE):
            self._logged = now
            pace = (now - self._started) / (self._step - self._first_step)
            losses_text = " ".join(f"{name}={value:.4g}" for name, value in values.items())
            logger.info(
                "step=%d/%d %s img_s=%.1f eta=%.0fs",
                self._step,
                self._total_steps,
                losses_text,
                self._batch_size / pace,
                pace * (self._total_steps - self._step),
            )

    def _estimate(self, bar: "tqdm[Any]", now: float) -> None:
        """Say once how long the training takes, from its first steps."""
        taken = self._step - self._first_step
        if taken == 1:
            self._first_done = now
        elif taken == 1 + _MEASURED_STEPS and self._step < self._total_steps:
            pace, steps = (now - self._first_done) / _MEASURED_STEPS, self._total_steps - self._step
            with bar.external_write_mode():
                logger.info("%s: %d steps at %.2g s", _about(pace * steps), steps, pace)


def _about(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"
