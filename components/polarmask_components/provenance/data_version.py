"""Which data a git revision means, and how to get it: git for the pointer, DVC for the files.

version = resolve(".", "HEAD")                  # commit and hash
fetch(".", version, Path("somewhere"))          # images/, annotations/
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from polarmask.system.files import atomic_path
from polarmask_components.errors import (
    MissingObjectsError,
    NoDataError,
    NotARepositoryError,
    UnknownRevisionError,
)
from polarmask_components.provenance.git import git, run_git

POINTER = "data.dvc"
_FOLDER = "data"


@dataclass(frozen=True)
class DataVersion:
    """One state of the data."""

    commit: str
    """The commit that gave data.dvc its content, so that commits to other files change nothing."""
    hash: str
    """DVC's hash of the folder: md5 over the names and md5s of its files, ending in `.dir`."""


def resolve(repository: str, revision: str) -> DataVersion:
    """Find the data that belongs to a revision.

    Args:
        repository: Folder in a git checkout, or a URL that git can clone.
        revision: Commit, tag or branch.

    Raises:
        NotARepositoryError: Neither a checkout nor a URL of one.
        UnknownRevisionError: No such revision.
        NoDataError: No data.dvc at the top of that revision, or one that names no folder.
    """
    with _checkout(repository) as path:
        found = git(path, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if found is None:
            found = git(path, "rev-parse", "--verify", "--quiet", f"origin/{revision}^{{commit}}")
        if found is None:
            raise UnknownRevisionError(
                f"{repository} has no revision {revision!r}; give a commit, tag or branch "
                "that was fetched"
            )
        pointer = git(path, "show", f"{found}:{POINTER}")
        commit = git(path, "log", "-1", "--format=%H", found, "--", POINTER)
        if pointer is None or not commit:
            raise NoDataError(
                f"{repository} has no {POINTER} at {revision}; add data with `dvc add data` and "
                f"commit {POINTER}"
            )
        return DataVersion(commit, _hash_in(pointer, f"{repository} at {revision}"))


def _hash_in(pointer: str, where: str) -> str:
    try:
        (output,) = yaml.safe_load(pointer)["outs"]
        path, folder_hash = output["path"], str(output["md5"])
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise NoDataError(
            f"{where}: {POINTER} can't be read ({error}); run `dvc add data` again"
        ) from error
    if path != _FOLDER or not folder_hash.endswith(".dir"):
        raise NoDataError(f"{where}: {POINTER} names {path!r}, not the folder {_FOLDER!r}")
    return folder_hash


def has_uncommitted_pointer(repository: str) -> bool:
    """Return whether a checkout's data.dvc has changes that no revision has yet."""
    path = Path(repository)
    return path.is_dir() and bool(git(path, "status", "--porcelain", "--", f":/{POINTER}"))


def fetch(repository: str, version: DataVersion, to: Path) -> None:
    """Copy the data folder to `to`, which appears whole and verified or not at all.

    Files come from the checkout's DVC cache, and the rest from its default remote.

    Raises:
        NotARepositoryError: Neither a checkout nor a URL of one.
        MissingObjectsError: The remote can't be reached, or files are missing or damaged there.
    """
    from dvc.api import DVCFileSystem

    with _checkout(repository, version.commit) as path, atomic_path(to) as temporary:
        try:
            files = DVCFileSystem(str(path), rev=version.commit)
            files.get(_FOLDER, str(temporary), recursive=True)
            files.repo.close()
        except Exception as error:  # DVC raises whatever its remotes raise
            raise MissingObjectsError(
                f"the data of commit {version.commit[:12]} can't be fetched from {repository}: "
                f"{error}; run `dvc push` where the data was added, and check the remote and its "
                "credentials"
            ) from error
        if hash_of_folder(temporary) != version.hash:
            raise MissingObjectsError(
                f"the data of commit {version.commit[:12]} in {repository} is damaged: its hash "
                f"is not {version.hash}; remove .dvc/cache there or repair the remote"
            )


def hash_of_folder(folder: Path) -> str:
    """Return the hash that `dvc add` gives a folder."""
    entries = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            entries.append({"md5": md5.hexdigest(), "relpath": path.relative_to(folder).as_posix()})
    entries.sort(key=lambda entry: entry["relpath"])
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def check_reachable(repository: str, revision: str) -> None:
    """Check that cache or remote have the list of a revision's files, without fetching them.

    Raises:
        DataVersionError: No such data, or the remote can't be reached or lacks it.
    """
    from dvc.api import DVCFileSystem

    version = resolve(repository, revision)
    with _checkout(repository, version.commit) as path:
        try:
            repo = DVCFileSystem(str(path), rev=version.commit).repo
            is_there = repo.cache.local.exists(version.hash) or (
                repo.cloud.get_remote_odb().exists(version.hash)
            )
            repo.close()
        except Exception as error:  # DVC raises whatever its remotes raise
            raise MissingObjectsError(
                f"the DVC remote of {repository} can't be reached: {error}; check its address and "
                "credentials"
            ) from error
    if not is_there:
        raise MissingObjectsError(
            f"the DVC remote of {repository} lacks the data of {revision}; run `dvc push` where "
            "the data was added"
        )


@contextmanager
def _checkout(repository: str, commit: str | None = None) -> Iterator[Path]:
    """Yield the top of a checkout: the given one as it is, or a temporary clone of a URL."""
    if Path(repository).is_dir():
        top = git(Path(repository), "rev-parse", "--show-toplevel")
        if top is None:
            raise NotARepositoryError(
                f"{repository} is in no git checkout that this user may read; "
                "give a checkout or a URL"
            )
        yield Path(top)
        return
    with tempfile.TemporaryDirectory(prefix="polarmask-data-") as folder:
        done = run_git("clone", "--quiet", "--", repository, folder)
        if done.returncode:
            raise NotARepositoryError(
                f"{repository!r} is no folder and can't be cloned: {done.stderr.strip()}"
            )
        if commit is not None:
            # A remote inside the repository has to be of the same time as the data.
            git(Path(folder), "checkout", "--quiet", "--detach", commit)
        yield Path(folder)
