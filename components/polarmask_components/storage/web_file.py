"""Files that are fetched by http(s), such as a model that somebody published."""

from pathlib import Path

import requests

from polarmask.system.redaction import redact
from polarmask_components.errors import StorageError
from polarmask_components.retry import BUSY_STATUSES, SHORT_DEADLINE_SECONDS, retry
from polarmask_components.storage.verify import verified

_SECONDS_WITHOUT_BYTES = 30
_BLOCK = 1024 * 1024
"""Bytes."""


def is_web_address(uri: str) -> bool:
    """Return whether a file is fetched by http(s)."""
    return uri.startswith(("http://", "https://"))


def download_web_file(url: str, to: Path, *, sha256: str | None) -> None:
    """Fetch a file, which is whole and verified afterwards or does not exist.

    Args:
        url: Of the file.
        to: File to write.
        sha256: Hex digest that it has to have; None accepts any content.

    Raises:
        DamagedObjectError: It has other content.
        StorageError: It can't be fetched.
    """

    def fetch() -> None:
        with requests.get(url, stream=True, timeout=_SECONDS_WITHOUT_BYTES) as answer:
            answer.raise_for_status()
            with to.open("wb") as file:
                for block in answer.iter_content(_BLOCK):
                    file.write(block)

    where = redact(url)
    try:
        with verified(to, sha256, where=where):
            retry(
                fetch,
                is_passing=_is_passing,
                deadline_seconds=SHORT_DEADLINE_SECONDS,
                server=where,
            )
    except requests.RequestException as error:
        raise StorageError(f"{where} can't be fetched: {error}; check the address") from error


def _is_passing(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in BUSY_STATUSES
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)
