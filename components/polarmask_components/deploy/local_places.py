"""Where runs of this machine keep their models: folders beside the run folders."""

from pathlib import Path
from typing import NamedTuple

RUNS = Path("runs")
"""Where commands look without an option."""


class LocalPlaces(NamedTuple):
    """Folders that runs of one folder share."""

    registry: Path
    server: Path
    cache: Path


def local_places(runs: Path) -> LocalPlaces:
    """Return the places of the runs in a folder."""
    shared = runs / "shared"
    return LocalPlaces(shared / "registry", shared / "server", shared / "cache")


def server_beside(registry: Path) -> Path:
    """Return where the models of a registry are served, if runs of this machine made it."""
    return registry.parent / local_places(Path()).server.name
