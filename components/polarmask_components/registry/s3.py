"""Registry objects in S3: conditional writes compare and swap, without a lock anywhere.

Any server that honours If-Match and If-None-Match on PUT will do. Endpoint and credentials come
from the environment, as boto3 reads it.
"""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from botocore.exceptions import ClientError

from polarmask_components.errors import RegistryError, UnusableModelError
from polarmask_components.storage.s3 import MISSING, code_of, explained, read_uri, s3_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_LOST = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409"}


class S3Objects:
    """Objects of a bucket below a prefix."""

    def __init__(self, client: "S3Client", bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self.where = f"s3://{bucket}/{prefix}".rstrip("/")

    @classmethod
    def from_uri(cls, uri: str) -> Self:
        """Read `s3://bucket/prefix`; the bucket has to exist."""
        bucket, prefix = read_uri(uri, kind=RegistryError)
        return cls(s3_client(), bucket, prefix)

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return content and ETag, or None."""
        with self._explained():
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except ClientError as error:
                if code_of(error) in MISSING:
                    return None
                raise
            return found["Body"].read(), found["ETag"]

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this ETag; tell whether it did."""
        put = partial(
            self._client.put_object, Bucket=self._bucket, Key=self._prefix + name, Body=data
        )
        with self._explained():
            try:
                if expected_tag is None:
                    put(IfNoneMatch="*")
                else:
                    put(IfMatch=expected_tag)
            except ClientError as error:
                if code_of(error) not in _LOST:
                    raise
                # If the answer to a first try got lost, the retry meets our own object.
                found = self.read(name)
                return found is not None and found[0] == data
        return True

    def upload(self, name: str, file: Path) -> None:
        """Store a file; S3 shows it as a whole or not at all."""
        with self._explained():
            self._client.upload_file(str(file), self._bucket, self._prefix + name)

    def upload_once(self, name: str, file: Path) -> None:
        """Store a file under a name that stands for its content; what is there already stays.

        Raises:
            UnusableModelError: What is there has another size.
        """
        with self._explained(), file.open("rb") as body:
            size = self._size(name)
            if size is None:
                try:
                    self._client.put_object(
                        Bucket=self._bucket, Key=self._prefix + name, Body=body, IfNoneMatch="*"
                    )
                except ClientError as error:
                    if code_of(error) not in _LOST:
                        raise
                size = self._size(name)
        if size != file.stat().st_size:
            raise UnusableModelError(
                f"{self.where}/{name} has {size} bytes, not {file.stat().st_size}: it was damaged; "
                "remove it and run again"
            )

    def _size(self, name: str) -> int | None:
        """Return an object's size in bytes, or None if there is none."""
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + name)
        except ClientError as error:
            if code_of(error) in MISSING:
                return None
            raise
        return head["ContentLength"]

    def download(self, name: str, to: Path) -> None:
        """Fetch an object to a file."""
        with self._explained():
            try:
                self._client.download_file(self._bucket, self._prefix + name, str(to))
            except ClientError as error:
                if code_of(error) not in MISSING:
                    raise
                raise UnusableModelError(
                    f"{self.where} holds no {name}; promote another version"
                ) from error

    def _explained(self) -> AbstractContextManager[None]:
        return explained(self.where, RegistryError)
