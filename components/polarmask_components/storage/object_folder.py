"""A folder in object storage: many files at once, each verified, none fetched twice."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, TypeVar

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
)

from polarmask.system.files import sha256_of_file
from polarmask_components.cluster.patience import PATIENCE_SECONDS, persist
from polarmask_components.errors import StorageError
from polarmask_components.storage.file_manifest import FileFacts, Manifest
from polarmask_components.storage.parallel import Progress, in_parallel
from polarmask_components.storage.s3 import MISSING, code_of, explained, read_uri, s3_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_BLOCK = 1024 * 1024
"""Bytes."""
_BUSY = {408, 429, 500, 502, 503, 504}

Item = TypeVar("Item")


class ObjectFolder:
    """Objects below a prefix of a bucket."""

    def __init__(
        self,
        client: "S3Client",
        bucket: str,
        prefix: str,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._patience_seconds = patience_seconds
        self.where = f"s3://{bucket}/{prefix}".rstrip("/")

    @classmethod
    def from_uri(cls, uri: str, *, patience_seconds: float = PATIENCE_SECONDS) -> Self:
        """Open `s3://bucket/prefix` or `minio://bucket/prefix`; nothing has to be there.

        Args:
            uri: The place.
            patience_seconds: How long to try again while the storage is busy or can't be reached.

        Raises:
            StorageError: Something else is written there.
        """
        bucket, prefix = read_uri(uri, kind=StorageError)
        return cls(s3_client(), bucket, prefix, patience_seconds=patience_seconds)

    def read(self, name: str) -> bytes | None:
        """Return a small object, or None."""

        def get() -> bytes | None:
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
            return found["Body"].read()

        return self._persist(get)

    def write(self, name: str, data: bytes) -> None:
        """Store a small object, in place of an older one."""
        key = self._prefix + name
        self._persist(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=data))

    def names(self) -> list[str]:
        """Return the names of all objects."""

        def find() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            return [found["Key"] for page in pages for found in page.get("Contents", ())]

        return [key.removeprefix(self._prefix) for key in self._persist(find)]

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects; those that are not there don't matter."""
        delete = partial(self._client.delete_object, Bucket=self._bucket)
        for name in names:
            self._persist(partial(delete, Key=self._prefix + name))

    def upload(self, files: Mapping[str, Path], *, what: str) -> None:
        """Store files under names; each shows as a whole or not at all.

        Args:
            files: By name.
            what: In lines of progress.
        """
        total = sum(path.stat().st_size for path in files.values())
        progress = Progress(f"{what} to {self.where}", len(files), total)

        def put(item: tuple[str, Path]) -> None:
            name, path = item
            key = self._prefix + name
            self._persist(lambda: self._client.upload_file(str(path), self._bucket, key))
            progress.add(files=1, size=path.stat().st_size)

        in_parallel(put, files.items())
        progress.end()

    def download(
        self,
        manifest: Manifest,
        to: Path,
        *,
        what: str,
        name_of: Callable[[str, FileFacts], str] = lambda path, _: path,
    ) -> None:
        """Fetch files that are not there whole yet.

        Args:
            manifest: What to fetch.
            to: Folder; made if absent. Files of an earlier try stay if they are right.
            what: In lines of progress.
            name_of: Returns the object's name for a path within the folder.

        Raises:
            StorageError: A file is missing, or not what the manifest says.
        """
        total = sum(facts.size for facts in manifest.values())
        progress = Progress(f"{what} from {self.where}", len(manifest), total)

        def get(item: tuple[str, FileFacts]) -> None:
            path, facts = item
            if not _is_whole(to / path, facts):
                self._fetch(name_of(path, facts), facts, to / path, progress)
            else:
                progress.add(size=facts.size)
            progress.add(files=1)

        in_parallel(get, manifest.items())
        progress.end()

    def _fetch(self, name: str, facts: FileFacts, to: Path, progress: Progress) -> None:
        to.parent.mkdir(parents=True, exist_ok=True)
        part = to.with_name(f".{to.name}.{threading.get_ident()}.part")
        with part.open("wb") as file:
            hashed = _HashedFile(file)
            self._persist(lambda: self._receive(name, facts, hashed, progress))
        if hashed.sha256.hexdigest() != facts.sha256:
            part.unlink()
            raise StorageError(
                f"{self.where}/{name} is not what was stored: {hashed.size} bytes with sha256 "
                f"{hashed.sha256.hexdigest()[:12]}, not {facts.size} with {facts.sha256[:12]}; "
                "run the step that wrote it again"
            )
        part.replace(to)

    def _receive(
        self, name: str, facts: FileFacts, hashed: "_HashedFile", progress: Progress
    ) -> None:
        """Go on after the bytes that are there: a big file survives lost connections."""
        if 0 < facts.size <= hashed.size:
            return
        get = partial(self._client.get_object, Bucket=self._bucket, Key=self._prefix + name)
        try:
            found = get(Range=f"bytes={hashed.size}-") if hashed.size else get()
        except ClientError as error:
            if code_of(error) not in MISSING:
                raise
            raise StorageError(
                f"{self.where} holds no {name}; run the step that wrote it again"
            ) from error
        for block in found["Body"].iter_chunks(_BLOCK):
            hashed.add(block)
            progress.add(size=len(block))

    def _persist(self, call: Callable[[], Item]) -> Item:
        with explained(self.where, StorageError):
            return persist(
                call,
                whom=self.where,
                passes=_passing,
                patience_seconds=self._patience_seconds,
            )


class _HashedFile:
    """A file that is written from its start on, and the hash of what is in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._file = file

    def add(self, block: bytes) -> None:
        self._file.write(block)
        self.sha256.update(block)
        self.size += len(block)


def _is_whole(path: Path, facts: FileFacts) -> bool:
    is_there = path.is_file() and path.stat().st_size == facts.size
    return is_there and sha256_of_file(path) == facts.sha256


def _passing(error: Exception) -> str:
    """Say what may pass by itself; "" for what will not."""
    if isinstance(error, Boto3Error):  # an upload's, around the reason
        error = error.__cause__ if isinstance(error.__cause__, Exception) else error
        context = error.__context__
        error = context if isinstance(context, ClientError) else error
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return str(error) if status in _BUSY else ""
    passing = (ConnectionError, HTTPClientError, IncompleteReadError)
    return str(error) if isinstance(error, passing) else ""
