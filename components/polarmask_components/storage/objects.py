"""Named bytes in a folder or in object storage, behind one interface."""

import re
from pathlib import Path
from typing import Protocol

from polarmask.system.files import atomic_path, sha256_of_file
from polarmask_components.errors import StorageError
from polarmask_components.retry import SHORT_DEADLINE_SECONDS
from polarmask_components.storage.local_objects import LocalObjects
from polarmask_components.storage.web_file import download_web_file, is_web_address

_NO_FOLDER = re.compile(r"~|[a-z][a-z0-9+.-]*:|(s3|minio|file|kubernetes)//", re.IGNORECASE)
"""Addresses with a slash or colon too few, and homes, which only a shell replaces."""


class Objects(Protocol):
    """Named bytes, on this machine or elsewhere. Names have slashes, like S3 keys.

    Every method raises StorageError if the place can't be used.
    """

    where: str
    """The place, for messages: s3://bucket/prefix, or an absolute path."""

    def uri(self, name: str) -> str:
        """Return where an object is, as `fetch_file` takes it."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return content and its tag, or None if there is no such object."""

    def size(self, name: str) -> int | None:
        """Return the size in bytes, or None if there is no such object."""

    def names(self, folder: str) -> list[str]:
        """Return the names of all objects below a folder such as "models", sorted."""

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this tag (None: does not exist); return whether it did."""

    def create(self, name: str, file: Path) -> bool:
        """Store a file, as a whole, unless the name is taken; return whether it was stored."""

    def download(self, name: str, to: Path, *, sha256: str | None) -> None:
        """Fetch an object to a file; DamagedObjectError if it is missing or has another hash."""


def open_objects(uri: str) -> Objects:
    """Open a place; nothing has to be there.

    Args:
        uri: A folder, `file:///folder`, or `s3://bucket/prefix`.

    Raises:
        StorageError: No such kind of place.
    """
    scheme, separator, rest = uri.partition("://")
    if separator and scheme == "file":
        return LocalObjects(Path(rest))
    if separator:
        # Imports boto3, which takes a second: too long for a folder.
        from polarmask_components.storage.s3_objects import S3Objects

        return S3Objects.from_uri(uri, deadline_seconds=SHORT_DEADLINE_SECONDS)
    if not uri:
        raise StorageError("an empty place; give a folder or s3://bucket/prefix")
    return LocalObjects(local_folder(uri))


def local_folder(text: str) -> Path:
    """Return the folder that a user names.

    Raises:
        StorageError: It looks like the address of something else.
    """
    if _NO_FOLDER.match(text):
        raise StorageError(
            f"{text!r} is neither an address nor taken as a folder; write s3://bucket/prefix or "
            f"kubernetes://NAMESPACE/NAME, the whole path of a folder, or ./{text} if you mean that"
        )
    return Path(text)


def fetch_file(uri: str, to: Path, *, sha256: str | None) -> None:
    """Fetch one file; it appears whole and verified or not at all.

    One that is there already with this content stays, and nothing is read from `uri`.

    Args:
        uri: s3://bucket/key, an http(s) address, or a path.
        to: File to write.
        sha256: Hex digest that it has to have; None accepts any content.

    Raises:
        DamagedObjectError: There is no such object, or it has other content.
        StorageError: The storage can't be used.
        OSError: `to` can't be written.
    """
    if sha256 and to.is_file() and sha256_of_file(to) == sha256:
        return
    if is_web_address(uri):
        with atomic_path(to) as temporary:
            download_web_file(uri, temporary, sha256=sha256)
        return
    place, slash, name = uri.rpartition("/")
    with atomic_path(to) as temporary:
        open_objects(place or slash or ".").download(name, temporary, sha256=sha256)
