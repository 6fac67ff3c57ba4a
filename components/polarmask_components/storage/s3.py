"""How we speak to object storage: one set of connection settings, one way to explain errors.

Endpoint and credentials come from the environment, as boto3 reads it.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from polarmask_components.errors import ComponentError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

MISSING = {"NoSuchKey", "404"}
_SCHEMES = ("s3", "minio")
"""minio is what Kubeflow calls its own store; it speaks S3."""

# Servers other than AWS may not know the checksums that boto3 adds unasked.
_CONFIG = Config(
    connect_timeout=5,
    max_pool_connections=32,
    retries={"mode": "standard", "total_max_attempts": 4},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)


def s3_client() -> "S3Client":
    """Return a client; threads may share it."""
    logging.getLogger("botocore").setLevel(logging.WARNING)  # or each tells of its credentials
    return boto3.client("s3", config=_CONFIG)


def read_uri(uri: str, *, kind: type[ComponentError]) -> tuple[str, str]:
    """Return bucket and key prefix of `s3://bucket/prefix`; the prefix is "" or ends in a slash.

    Args:
        uri: Or `minio://bucket/prefix`.
        kind: Of error to raise if it is none.
    """
    scheme, separator, rest = uri.partition("://")
    bucket, _, prefix = rest.partition("/")
    if not separator or scheme not in _SCHEMES:
        raise kind(f"{uri!r} is no place in object storage; write s3://bucket/prefix")
    if not bucket:
        raise kind(f"{uri!r} names no bucket; write s3://bucket/prefix")
    return bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""


@contextmanager
def explained(where: str, kind: type[ComponentError]) -> Iterator[None]:
    """Turn errors of boto3 into one of ours that names the place."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise kind(
            f"{where}: {error}; check the bucket, AWS_ENDPOINT_URL and the credentials in the "
            "environment"
        ) from error


def code_of(error: ClientError) -> str:
    """Return S3's name for an error, such as NoSuchKey."""
    return error.response.get("Error", {}).get("Code", "")
