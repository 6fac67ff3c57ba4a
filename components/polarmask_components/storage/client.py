"""The S3 client: connection settings, retries, and `StorageError` for what fails.

Endpoint and credentials come from the environment: see `storage.environment`. Every call goes
through `call_s3`: boto3 sends a request up to four times, and `retry` repeats the call while the
storage is busy or can't be reached, with pauses of 0.25 to 30 s, until the caller's deadline: 15
minutes for training jobs, 1 minute for their checkpoints, 20 s for the registry and serving pods.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    SSLError,
)

from polarmask_components.errors import StorageError
from polarmask_components.retry import BUSY_STATUSES, retry
from polarmask_components.storage.environment import OWN_CA, prepare_environment

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

_MISSING = {"NoSuchKey", "404"}
_CONDITION_FAILED = {
    *("PreconditionFailed", "412"),
    "NoSuchKey",  # AWS, for If-Match on an object that was deleted
}
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted", "409"}
"""Another write of the same object is in progress; AWS asks to send the request again."""

# Servers other than AWS may not know the checksums that boto3 adds by default.
_CONFIG = Config(
    connect_timeout=5,
    max_pool_connections=32,
    retries={"mode": "standard", "total_max_attempts": 4},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
)

Answer = TypeVar("Answer")


def s3_client() -> "S3Client":
    """Return a client without a request; threads may share it.

    Raises:
        StorageError: The environment names a file of certificates that does not exist.
    """
    prepare_environment()
    logging.getLogger("botocore").setLevel(logging.WARNING)  # it logs where credentials are
    return boto3.client("s3", config=_CONFIG)


def call_s3(call: Callable[[], Answer], *, where: str, deadline_seconds: float) -> Answer:
    """Make a call with retries.

    Args:
        call: Uses a client; may be repeated.
        where: For messages: what is read or written.
        deadline_seconds: See `retry`.

    Raises:
        StorageError: The storage can't be reached or refuses.
    """
    try:
        return retry(call, is_passing=_is_passing, deadline_seconds=deadline_seconds, server=where)
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise StorageError(f"{where}: {error}; check {_suspects(error)}") from error


def _suspects(error: Exception) -> str:
    """Return what to check after an error."""
    if _is_certificate_error(error):
        return f"the server's certificate; {OWN_CA} takes the PEM of an authority of your own"
    return "that it exists, AWS_ENDPOINT_URL and the credentials in the environment"


def is_missing(error: ClientError) -> bool:
    """Return whether there is no such object."""
    return _code_of(error) in _MISSING


def is_condition_failed(error: ClientError) -> bool:
    """Return whether a conditional write was refused because the object is another one."""
    return _code_of(error) in _CONDITION_FAILED


def _code_of(error: ClientError) -> str:
    """Return S3's name for an error, such as NoSuchKey."""
    return error.response.get("Error", {}).get("Code", "")


def _is_passing(error: Exception) -> bool:
    if isinstance(error, Boto3Error):  # an upload's, around the reason
        reason = error.__cause__ or error.__context__
        error = reason if isinstance(reason, Exception) else error
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status in BUSY_STATUSES or _code_of(error) in _CONFLICTS
    if _is_certificate_error(error):
        return False
    return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError)


def _is_certificate_error(error: Exception) -> bool:
    """Return whether the server's certificate is not trusted; handshakes may break otherwise."""
    return isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)
