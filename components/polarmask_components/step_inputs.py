"""Input folders of steps: Kubeflow reuses a cached step whether its files still exist or not."""

from pathlib import Path
from typing import Any, Protocol

from polarmask_components.errors import DamagedObjectError


class FolderArtifact(Protocol):
    """Kubeflow's `Dataset`, a folder."""

    name: str
    uri: str
    path: str
    metadata: dict[str, Any]


def record_contents(artifact: FolderArtifact) -> None:
    """Keep how many files and bytes a folder has, for `folder_of` in later steps."""
    artifact.metadata.update(_contents(Path(artifact.path)))


def folder_of(artifact: FolderArtifact) -> Path:
    """Return an input folder after comparing its files with those that were recorded.

    Raises:
        DamagedObjectError: Files are missing or have other sizes.
    """
    folder = Path(artifact.path)
    recorded = {key: artifact.metadata.get(key) for key in ("files", "bytes")}
    found = _contents(folder)
    if None not in recorded.values() and recorded != found:
        raise DamagedObjectError(
            f"{artifact.uri} has {found['files']:,} files of {found['bytes']:,} bytes, and had "
            f"{recorded['files']:,.0f} of {recorded['bytes']:,.0f} when its step ended: the cached "
            "result has lost files. Start the run again with caching switched off"
        )
    return folder


def _contents(folder: Path) -> dict[str, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}
