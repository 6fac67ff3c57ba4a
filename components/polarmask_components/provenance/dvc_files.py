"""The files that DVC knows at a commit, and what it means if they can't be had."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polarmask_components.errors import MissingObjectsError
from polarmask_components.storage.environment import OWN_CA, prepare_environment

_REFUSALS = {
    *("401", "403", "AccessDenied", "Forbidden", "ExpiredToken", "InvalidToken"),
    *("InvalidAccessKeyId", "SignatureDoesNotMatch"),
}


@contextmanager
def dvc_files(checkout: Path, commit: str, *, what: str) -> Iterator[Any]:
    """Yield DVC's file system of a commit: its cache, then the remotes that each file has.

    Args:
        checkout: Top of the repository.
        commit: Whose data and configuration count.
        what: The data, for errors.

    Raises:
        MissingObjectsError: The remote can't be reached, or files are missing there.
    """
    from dvc.api import DVCFileSystem

    prepare_environment()
    try:
        files = DVCFileSystem(str(checkout), rev=commit)
        try:
            yield files
        finally:
            files.repo.close()
    except Exception as error:  # DVC raises whatever its remotes raise
        causes = list(_chain(error))
        lines = (f"{type(each).__name__}: {' '.join(str(each).split())}" for each in causes)
        shown = "; ".join(dict.fromkeys(lines))
        raise MissingObjectsError(
            f"{what} can't be fetched: {_diagnosis(causes)} ({shown})"
        ) from error


def has_changed_files(checkout: Path, pointer: str) -> bool:
    """Return whether the files of a pointer are there and differ from it."""
    from dvc.repo import Repo

    status: dict[str, list[Any]] = {}
    with suppress(Exception), Repo(str(checkout)) as repo:  # what is wrong, the run will report
        status = repo.status(targets=[str(checkout / pointer)])
    changes = [each for found in status.values() for each in found if isinstance(each, dict)]
    return any("modified" in each.get("changed outs", {}).values() for each in changes)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _code_of(error: BaseException) -> str:
    """Return S3's name for an error, or the status of HTTP; "" for other errors."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code or getattr(error, "status", ""))


def _diagnosis(causes: list[BaseException]) -> str:
    """Return what is wrong and how to fix it."""
    names = {type(each).__name__ for each in causes}
    codes = {_code_of(each) for each in causes}
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in causes):
        return (
            "the certificate of the DVC remote is not trusted; set AWS_CA_BUNDLE to a file with "
            f"its authority, or {OWN_CA} to the PEM"
        )
    if "NoSuchBucket" in codes:
        return "the bucket of the DVC remote does not exist; make it, or correct the remote's url"
    denied = [each.filename for each in causes if isinstance(each, PermissionError)]
    if any(denied):  # a file of this machine; the errors of remotes name none
        path = next(filter(None, denied))
        return f"this user may not open {path}; correct the rights of the file or folder"
    if names & {"NoCredentialsError", "PartialCredentialsError"}:
        return (
            "there are no credentials for the DVC remote; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if codes & _REFUSALS or denied:
        return "the DVC remote refuses these credentials; check the keys and their rights"
    if any(
        isinstance(each, ConnectionError | socket.gaierror | TimeoutError) for each in causes
    ) or (any("Timeout" in name or "Connect" in name for name in names)):
        return "the DVC remote can't be reached; check the remote's address, or AWS_ENDPOINT_URL"
    if any(isinstance(each, FileNotFoundError) for each in causes):
        return (
            "the cache, and the DVC remote if there is one, lack files of it; run `dvc push` where "
            "the data was added"
        )
    return "DVC reports an error; check the remote's configuration"
