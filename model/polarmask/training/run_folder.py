"""The files of a run folder, and how to snapshot those that resuming needs. Imports no torch."""

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polarmask.data.summary import SplitSummary
from polarmask.system.files import write_text

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.json"
BEST = "best"
"""Model folder of the best weights that validation has found."""
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
PIXELS = "pixels"
"""Folder of uncompressed copies of large images; removed when the training ends."""

_DATA = "data.json"
_TRIES = 20
_PAUSE_SECONDS = 0.01


@dataclass(frozen=True)
class RunData:
    """What a run learns from, as its `data.json` has it."""

    total_steps: int
    splits: tuple[SplitSummary, ...]

    @classmethod
    def read(cls, run: Path) -> "RunData | None":
        """Return that of a run folder; None before the run has begun."""
        try:
            plain = json.loads((run / _DATA).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        splits = tuple(map(SplitSummary.from_json, plain["splits"]))
        return cls(plain["total_steps"], splits)

    def write(self, run: Path) -> None:
        """Write that of a run folder."""
        splits = [each.to_json() for each in self.splits]
        plain = {"total_steps": self.total_steps, "splits": splits}
        write_text(run / _DATA, json.dumps(plain, indent=1))


def run_folder_of(source: str | Path) -> Path | None:
    """Return the run folder that is named, or that a model folder, checkpoint or archive is in."""
    path = Path(source)
    return next((each for each in (path, path.parent) if (each / METRICS).is_file()), None)


def files_to_resume(folder: Path) -> list[Path]:
    """Return the existing files that resuming needs."""
    files = [folder / CHECKPOINT, folder / METRICS, folder / VALIDATION]
    return [path for path in (*files, *sorted((folder / BEST).glob("*"))) if path.is_file()]


def take_snapshot(folder: Path, to: Path) -> bool:
    """Copy the files that resuming needs, while training keeps writing them.

    The checkpoint is copied first. Everything copied after it is as new or newer, as after a kill,
    and resuming allows for that.

    Args:
        folder: Run folder.
        to: Empty folder on the same disk: files that are never written in place are linked.

    Returns:
        Whether there was a checkpoint to copy.
    """
    try:
        os.link(folder / CHECKPOINT, to / CHECKPOINT)
    except FileNotFoundError:
        return False
    for name in (METRICS, VALIDATION):
        with suppress(FileNotFoundError):
            shutil.copyfile(folder / name, to / name)
    for _ in range(_TRIES):
        if _link_folder(folder / BEST, to / BEST):
            break
        time.sleep(_PAUSE_SECONDS)  # there is none, or it is being replaced
    return True


def _link_folder(source: Path, to: Path) -> bool:
    """Link a folder's files; return False, and leave nothing, if it was replaced meanwhile."""
    try:
        opened = source.stat()
        to.mkdir()
        for path in source.iterdir():
            os.link(path, to / path.name)
        if source.stat().st_ino == opened.st_ino:
            return True
    except FileNotFoundError:
        pass
    shutil.rmtree(to, ignore_errors=True)
    return False
