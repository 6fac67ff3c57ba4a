"""Many files to and from object storage: in parallel, verified, none fetched twice."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from polarmask_components.errors import DamagedObjectError
from polarmask_components.storage.manifest import FileFacts, Manifest
from polarmask_components.storage.parallel import Progress, in_parallel
from polarmask_components.storage.s3_objects import S3Objects

_PARTIAL = ".part"


def upload_files(objects: S3Objects, files: Mapping[str, Path], *, what: str) -> None:
    """Store files under names; each appears as a whole or not at all.

    Args:
        objects: Where to.
        files: By name of the object.
        what: For lines of progress.

    Raises:
        StorageError: The storage can't be used.
    """
    total = sum(path.stat().st_size for path in files.values())
    progress = Progress(f"{what} to {objects.where}", len(files), total)

    def upload(item: tuple[str, Path]) -> None:
        name, path = item
        objects.upload(name, path)
        progress.add(files=1, size=path.stat().st_size)

    in_parallel(upload, files.items())
    progress.end()


def download_files(
    objects: S3Objects,
    manifest: Manifest,
    to: Path,
    *,
    what: str,
    name_of: Callable[[str, FileFacts], str] = lambda path, _: path,
) -> None:
    """Fetch files, except those that are there already with the right content.

    Args:
        objects: Where from.
        manifest: What to fetch.
        to: Folder; made if absent.
        what: For lines of progress.
        name_of: Returns the object's name for a path within the folder.

    Raises:
        DamagedObjectError: An object is missing or differs from the manifest.
        StorageError: The storage can't be used.
    """
    for leftover in to.rglob(f".*{_PARTIAL}"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    total = sum(facts.size for facts in manifest.values())
    progress = Progress(f"{what} from {objects.where}", len(manifest), total)

    def download(item: tuple[str, FileFacts]) -> None:
        name, facts = item
        path = to / name
        if facts.fit(path):
            progress.add(files=1, size=facts.size)
            return
        partial = path.with_name(f".{path.name}.{threading.get_ident()}{_PARTIAL}")
        try:
            objects.download(
                name_of(name, facts),
                partial,
                sha256=facts.sha256,
                progress=lambda size: progress.add(size=size),
            )
        except DamagedObjectError as error:
            raise DamagedObjectError(
                f"{error}; delete it if it is there, and run the step that wrote it again"
            ) from error
        partial.replace(path)
        progress.add(files=1)

    in_parallel(download, manifest.items())
    progress.end()
