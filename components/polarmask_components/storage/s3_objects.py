"""Objects of a bucket below a prefix: read, conditional and plain writes, verified downloads.

Conditional writes compare and swap without a lock: any server that honours If-Match and
If-None-Match on PUT will do.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar

from botocore.exceptions import ClientError

from polarmask.system.files import printable
from polarmask_components.errors import DamagedObjectError, StorageError
from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_components.storage.address import split_uri
from polarmask_components.storage.client import (
    call_s3,
    is_condition_failed,
    is_missing,
    s3_client,
)
from polarmask_components.storage.verify import verified

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_BLOCK = 1024 * 1024
"""Bytes."""

Answer = TypeVar("Answer")


class S3Objects:
    """Objects of a bucket below a prefix; threads may share it. See `objects.Objects`."""

    def __init__(self, bucket: str, prefix: str, *, deadline_seconds: float) -> None:
        self._client = s3_client()
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._deadline_seconds = deadline_seconds
        self.where = f"s3://{bucket}/{prefix}".rstrip("/")

    @classmethod
    def from_uri(cls, uri: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> Self:
        """Open `s3://bucket/prefix`; the bucket has to exist.

        Args:
            uri: The place.
            deadline_seconds: How long to retry while the storage is busy or can't be reached.

        Raises:
            StorageError: Not a URI of object storage.
        """
        return cls(*split_uri(uri), deadline_seconds=deadline_seconds)

    def uri(self, name: str) -> str:
        """Return the URI of an object."""
        return f"{self.where}/{name}"

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag, or None."""

        def get() -> tuple[bytes, str]:
            found = self._client.get_object(**self._key(name))
            # A proxy may mark the tag as weak, which the server's own If-Match never equals.
            return found["Body"].read(), found["ETag"].removeprefix("W/")

        return self._call(lambda: _or_none(get))

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if there is none."""
        head = partial(self._client.head_object, **self._key(name))
        return self._call(lambda: _or_none(lambda: head()["ContentLength"]))

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this ETag, or if there is none; return whether it did."""
        condition = {"IfNoneMatch": "*"} if expected_tag is None else {"IfMatch": expected_tag}
        if self._put(name, data, **condition):
            return True
        # If the answer to a first try got lost, the retry meets our own object.
        found = self.read(name)
        return found is not None and found[0] == data

    def put(self, name: str, data: bytes) -> None:
        """Store a small object, in place of an older one."""
        self._put(name, data)

    def create(self, name: str, file: Path) -> bool:
        """Store a file unless there is an object of this name; return whether it was stored."""

        def put() -> bool:
            with file.open("rb") as body:
                return self._put_once(name, body, IfNoneMatch="*")

        return self._call(put)

    def upload(self, name: str, file: Path) -> None:
        """Store a file, in place of an older object; S3 shows it as a whole or not at all."""
        target = (self._bucket, self._prefix + name)
        self._call(lambda: self._client.upload_file(str(file), *target))

    def download(
        self,
        name: str,
        to: Path,
        *,
        sha256: str | None,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Fetch an object to a file, which is whole and verified afterwards or does not exist.

        A lost connection costs only what was not received yet.

        Args:
            name: Of the object.
            to: File to write; its folder is made if absent.
            sha256: Hex digest that it has to have, if known.
            progress: Called with the number of bytes of each block.

        Raises:
            DamagedObjectError: There is no such object, or it has other content.
        """
        with verified(to, sha256, where=self.uri(name)), to.open("wb") as file:
            download = _Download(file, progress)
            self._call(lambda: download.go_on(self._client, self._key(name), self.uri(name)))

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all objects, or of those below a folder, sorted."""
        prefix = self._prefix + (folder and f"{folder}/")

        def find() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix
            )
            return [found["Key"] for page in pages for found in page.get("Contents", ())]

        return [key.removeprefix(self._prefix) for key in self._call(find)]

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that do not exist are skipped."""
        for name in names:
            self._call(partial(self._client.delete_object, **self._key(name)))

    def _put(self, name: str, data: bytes, **condition: str) -> bool:
        return self._call(lambda: self._put_once(name, data, **condition))

    def _put_once(self, name: str, body: Any, **condition: Any) -> bool:  # noqa: ANN401  # of put_object
        try:
            self._client.put_object(**self._key(name), Body=body, **condition)
        except ClientError as error:
            if condition and is_condition_failed(error):
                return False
            raise
        return True

    def _key(self, name: str) -> dict[str, Any]:
        if printable(name) != name:
            raise StorageError(
                f"{printable(name)} is no name for object storage, whose names are UTF-8; "
                "rename the file, and in the annotations too"
            )
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    def _call(self, call: Callable[[], Answer]) -> Answer:
        return call_s3(call, where=self.where, deadline_seconds=self._deadline_seconds)


class _Download:
    """A file that receives an object, in several requests if connections are lost."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress
        self._size: int | None = None
        """Bytes of the whole object, once known."""

    def go_on(self, client: "S3Client", key: dict[str, Any], uri: str) -> None:
        """Receive what is missing."""
        received = self._file.tell()
        if received == self._size:
            return
        # A range of an empty object is refused, so the first request has none.
        rest: dict[str, Any] = {"Range": f"bytes={received}-"} if received else {}
        try:
            found = client.get_object(**key, **rest)
        except ClientError as error:
            if not is_missing(error):
                raise
            raise DamagedObjectError(f"{uri} does not exist") from error
        start = _first_byte(found.get("ContentRange", ""))
        if start != received:  # some servers ignore Range, some begin earlier
            self._file.seek(start)
            self._file.truncate()
            self._progress(start - received)
        self._size = start + found["ContentLength"]
        for block in found["Body"].iter_chunks(_BLOCK):
            self._file.write(block)
            self._progress(len(block))


def _first_byte(content_range: str) -> int:
    """Return where an answer such as `bytes 100-199/200` begins; 0 for a whole object."""
    found = re.match(r"bytes (\d+)-", content_range)
    return int(found[1]) if found else 0


def _or_none(call: Callable[[], Answer]) -> Answer | None:
    """Return None for a missing object."""
    try:
        return call()
    except ClientError as error:
        if is_missing(error):
            return None
        raise
