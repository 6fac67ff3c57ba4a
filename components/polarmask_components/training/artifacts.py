"""Inputs and outputs of the train step."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StoredFolder:
    """An input of a step: in object storage, and Kubeflow's copy of it on this machine."""

    uri: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class TrainingOutputs:
    """Where the results go."""

    model: Path
    """The model folder."""
    run: Path
    """The run folder, without checkpoint."""
