"""The checkpoint: all that an exact resume needs, in one file that is read without executing code.

`train` writes it after every epoch and when it is stopped, see `train.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polarmask.config.settings import RunConfig, from_dict, to_dict
from polarmask.data.coco import Category
from polarmask.errors import CheckpointError, ConfigError
from polarmask.system.files import atomic_path
from polarmask.system.formats import JsonFormat

_FORMAT = JsonFormat(2, CheckpointError, "choose another run folder, or delete this one")


@dataclass(frozen=True)
class Validated:
    """Results of validation so far."""

    step: int = 0
    """Step of the last evaluation; 0 before the first."""
    best_step: int = 0
    best_ap: float = -1.0
    """Mask AP in [0, 1]."""


@dataclass(frozen=True)
class TrainingState:
    """All that an exact resume needs; batches and augmentation follow from step and seed."""

    config: RunConfig
    categories: tuple[Category, ...]
    """In the order of the network's outputs."""
    data_hash: str
    """sha256 of the training annotations: a run can't resume on other data."""
    step: int
    """Optimiser steps done."""
    detector: dict[str, Any]
    average: dict[str, Any] | None
    """State of `AveragedModel`, if the run averages weights."""
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    validated: Validated

    def weights(self) -> dict[str, Any]:
        """Return the weights to keep: the averaged ones if the run averages."""
        if self.average is None:
            return self.detector
        prefix = "module."  # of `AveragedModel`, which also holds a counter
        return {
            name.removeprefix(prefix): value
            for name, value in self.average.items()
            if name.startswith(prefix)
        }


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Write atomically: a kill at any time leaves the old checkpoint or the new one, whole."""
    plain = {
        **vars(state),
        "config": json.dumps(to_dict(state.config)),
        "categories": [[category.id, category.name] for category in state.categories],
        "validated": vars(state.validated),
    }
    with atomic_path(path) as temporary:
        torch.save(_FORMAT.stamp(plain), temporary)


def read_step(path: Path) -> int:
    """Return the step of a checkpoint, without reading its weights.

    Raises:
        CheckpointError: Unreadable file.
    """
    try:
        return int(_read(path, mmap=True)["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise _FORMAT.damaged(path, error) from error


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint to the CPU.

    Raises:
        CheckpointError: Unreadable file, or unknown format version.
    """
    plain = _FORMAT.check(_read(path), where=path)
    try:
        typed = {
            "config": from_dict(json.loads(plain["config"])),
            "categories": tuple(Category(*pair) for pair in plain["categories"]),
            "validated": Validated(**plain["validated"]),
        }
        return TrainingState(**{**plain, **typed})
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise _FORMAT.damaged(path, error) from error


def _read(path: Path, *, mmap: bool = False) -> Any:  # noqa: ANN401  # whatever is in the file
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises anything from pickle to zip errors on damaged files
        raise _FORMAT.damaged(path, error) from error
