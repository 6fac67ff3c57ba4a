"""The files of a run folder that resuming needs, and how to snapshot them. Imports no torch."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

CHECKPOINT = "checkpoint.pt"
CONFIG = "config.json"
BEST = "best"
"""Model folder of the best weights that validation has found."""
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
PIXELS = "pixels"
"""Folder of uncompressed copies of large images; removed when the training ends."""
DATA = "data.json"
"""Summaries of the splits, by name."""

_TRIES = 20
_PAUSE_SECONDS = 0.01


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
