"""Does a place in object storage do what registry and training ask of it? A probe, then gone."""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from polarmask_components.errors import StorageError
from polarmask_components.storage.s3 import MISSING, code_of, explained, read_uri, s3_client

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_REFUSED = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


def problems_of_bucket(uri: str) -> Iterator[str]:
    """Yield what s3://bucket/prefix can't do: write, read, write under conditions, delete.

    Raises:
        StorageError: It can't be reached, or not be used at all.
    """
    bucket, prefix = read_uri(uri, kind=StorageError)
    key = f"{prefix}preflight-{uuid.uuid4().hex}"
    client = s3_client()
    with explained(uri, StorageError):
        _expect_missing(client, bucket, key)
        client.put_object(Bucket=bucket, Key=key, Body=b"probe", IfNoneMatch="*")
        try:
            for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123456789abcdef"'}):
                if _writes(client, Bucket=bucket, Key=key, Body=b"other", **condition):
                    yield (
                        f"{uri}: the server ignores {next(iter(condition))} on PUT, so two runs "
                        "could promote at once; use one that honours it"
                    )
            client.get_object(Bucket=bucket, Key=key)["Body"].read()
        finally:
            client.delete_object(Bucket=bucket, Key=key)


def _expect_missing(client: "S3Client", bucket: str, key: str) -> None:
    """Read what is not there: before the bucket's first write, because some servers make it."""
    try:
        client.get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if code_of(error) not in MISSING:
            raise


def _writes(client: "S3Client", **arguments: Any) -> bool:  # noqa: ANN401  # of put_object
    try:
        client.put_object(**arguments)
    except ClientError as error:
        if code_of(error) not in _REFUSED:
            raise
        return False
    return True
