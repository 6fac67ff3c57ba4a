"""Outputs of the train step."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainingOutputs:
    """Where the results go."""

    model: Path
    """The model folder."""
    run: Path
    """The run folder, without checkpoint."""
