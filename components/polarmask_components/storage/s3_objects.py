"""Objects of a bucket below a prefix: read, conditional and plain writes, verified downloads.

Conditional writes compare and swap without a lock: any server that honours If-Match and
If-None-Match on PUT will do.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from botocore.exceptions import ClientError

from polarmask_components.errors import DamagedObjectError
from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_components.storage.client import (
    S3Bucket,
    is_condition_failed,
    is_missing,
    split_uri,
)
from polarmask_components.storage.hashed_file import HashedFile

_BLOCK = 1024 * 1024
"""Bytes."""

Answer = TypeVar("Answer")


class S3Objects:
    """Objects of a bucket below a prefix; threads may share it. See `objects.Objects`."""

    def __init__(self, bucket: S3Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.where = f"s3://{bucket.name}/{prefix}".rstrip("/")

    @classmethod
    def from_uri(cls, uri: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> Self:
        """Open `s3://bucket/prefix` or `minio://bucket/prefix`; the bucket has to exist.

        Args:
            uri: The place.
            deadline_seconds: How long to retry while the storage is busy or can't be reached.

        Raises:
            StorageError: Not a URI of object storage.
        """
        bucket, prefix = split_uri(uri)
        return cls(S3Bucket.connect(bucket, deadline_seconds=deadline_seconds), prefix)

    def uri(self, name: str) -> str:
        """Return the URI of an object."""
        return f"{self.where}/{name}"

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag, or None."""

        def get() -> tuple[bytes, str]:
            found = self._bucket.client.get_object(**self._key(name))
            return found["Body"].read(), found["ETag"]

        return self._call(lambda: _or_none(get))

    def size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if there is none."""
        head = partial(self._bucket.client.head_object, **self._key(name))
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
        target = (self._bucket.name, self._prefix + name)
        self._call(lambda: self._bucket.client.upload_file(str(file), *target))

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
            to: File to write; not visible to others yet.
            sha256: Hex digest that it has to have, if known.
            progress: Called with the number of bytes of each block.

        Raises:
            DamagedObjectError: There is no such object, or it has other content.
        """
        with HashedFile(to, sha256, where=self.uri(name)) as file:
            self._call(lambda: self._receive(name, file, progress))

    def _receive(self, name: str, file: HashedFile, progress: Callable[[int], None]) -> None:
        if file.size == file.expected_size:
            return
        get = partial(self._bucket.client.get_object, **self._key(name))
        try:
            found = get(Range=f"bytes={file.size}-") if file.size else get()
        except ClientError as error:
            if not is_missing(error):
                raise
            raise DamagedObjectError(
                f"{self.where} holds no {name}; check that it exists"
            ) from error
        file.expected_size = file.size + found["ContentLength"]
        for block in found["Body"].iter_chunks(_BLOCK):
            file.add(block)
            progress(len(block))

    def names(self) -> list[str]:
        """Return the names of all objects."""

        def find() -> list[str]:
            pages = self._bucket.client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=self._prefix
            )
            return [found["Key"] for page in pages for found in page.get("Contents", ())]

        return [key.removeprefix(self._prefix) for key in self._call(find)]

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that do not exist are skipped."""
        for name in names:
            self._call(partial(self._bucket.client.delete_object, **self._key(name)))

    def _put(self, name: str, data: bytes, **condition: str) -> bool:
        return self._call(lambda: self._put_once(name, data, **condition))

    def _put_once(self, name: str, body: Any, **condition: Any) -> bool:  # noqa: ANN401  # of put_object
        try:
            self._bucket.client.put_object(**self._key(name), Body=body, **condition)
        except ClientError as error:
            if condition and is_condition_failed(error):
                return False
            raise
        return True

    def _key(self, name: str) -> dict[str, Any]:
        return {"Bucket": self._bucket.name, "Key": self._prefix + name}

    def _call(self, call: Callable[[], Answer]) -> Answer:
        return self._bucket.call(call, where=self.where)


def _or_none(call: Callable[[], Answer]) -> Answer | None:
    """Return None for a missing object."""
    try:
        return call()
    except ClientError as error:
        if is_missing(error):
            return None
        raise
