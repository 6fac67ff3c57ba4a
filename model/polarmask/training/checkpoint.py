"""Training state on disk: atomic, with the config inside, read without executing code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polarmask.config.settings import RunConfig, from_dict, to_dict
from polarmask.data.coco import Category
from polarmask.errors import CheckpointError
from polarmask.system.files import atomic_path

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Validated:
    """What validation has found so far."""

    step: int = 0
    """Of the last measurement; 0 before the first."""
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
    """sha256 of the training annotations: weights of other data must not be continued on these."""
    step: int
    """Optimiser steps done."""
    detector: dict[str, Any]
    average: dict[str, Any] | None
    """Averaged weights, if the run averages."""
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
    """Write atomically: a kill at any time leaves the old checkpoint or the new one."""
    plain = {
        **vars(state),
        "config": json.dumps(to_dict(state.config)),
        "categories": [[category.id, category.name] for category in state.categories],
        "validated": vars(state.validated),
        "format_version": FORMAT_VERSION,
    }
    with atomic_path(path) as temporary:
        torch.save(plain, temporary)


def read_step(path: Path) -> int:
    """Return the optimiser steps done by a checkpoint, without reading its weights.

    Raises:
        CheckpointError: Unreadable file.
    """
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(plain["step"])
    except Exception as error:  # as in load_checkpoint
        raise CheckpointError(f"{path} can't be read ({error})") from error


def load_checkpoint(path: Path) -> TrainingState:
    """Read a checkpoint to the CPU.

    Raises:
        CheckpointError: Unreadable file or unknown format version.
    """
    try:
        plain = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from pickle to zip errors on damaged files
        raise CheckpointError(
            f"{path} can't be read ({error}); delete it to start the run afresh"
        ) from error
    version = plain.pop("format_version", None) if isinstance(plain, dict) else None
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, this code reads {FORMAT_VERSION}; "
            "choose another run folder"
        )
    typed = {
        "config": from_dict(json.loads(plain["config"])),
        "categories": tuple(Category(*pair) for pair in plain["categories"]),
        "validated": Validated(**plain["validated"]),
    }
    return TrainingState(**{**plain, **typed})
