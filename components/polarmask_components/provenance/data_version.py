"""Which data a git revision means, and how to get it: git for the pointer, DVC for the files.

version = resolve(".", "HEAD")                  # commit and hash
fetch(".", version, Path("somewhere"))          # images/, annotations/
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polarmask.system.files import atomic_path
from polarmask_components.errors import (
    MissingObjectsError,
    NoDataError,
    NotARepositoryError,
    UnknownRevisionError,
)
from polarmask_components.provenance.dvc_files import dvc_files, has_changed_files
from polarmask_components.provenance.git import SECONDS_TO_ANSWER, git, run_git

POINTER = "data.dvc"
_FOLDER = "data"
_LOOKED_AT = 16
"""Files that preflight opens, at most."""
_CONFIG = ".dvc/config"
"""Names the remotes."""


@dataclass(frozen=True)
class DataVersion:
    """One state of the data."""

    commit: str
    """The commit that last changed data.dvc or DVC's configuration, which says where the files are;
    commits to other files change nothing."""
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
        where = f"{repository} at {revision}"
        version = _hash_in(_pointer(path, found, where), where)
        commit = git(path, "log", "-1", "--format=%H", found, "--", POINTER, _CONFIG) or found
        if commit in _cut_commits(path):
            raise UnknownRevisionError(
                f"{where}: the history that was fetched begins with {commit[:12]}, so it does not "
                f"show which commit changed {POINTER}; run `git fetch --unshallow` there"
            )
        return DataVersion(commit, version)


def _pointer(checkout: Path, commit: str, where: str) -> dict[str, Any]:
    """Return what data.dvc says of the data folder.

    Raises:
        NoDataError: There is none, or it names no folder.
    """
    text = git(checkout, "show", f"{commit}:{POINTER}")
    if text is None:
        names = (git(checkout, "ls-tree", "-r", "--name-only", commit) or "").splitlines()
        others = [name for name in names if name.endswith(f"/{POINTER}")]
        raise NoDataError(
            f"{where} has {others[0]}, and {POINTER} has to be at the top of the repository; move "
            "DVC and the data there, or make the folder a repository of its own"
            if others
            else f"{where} has no {POINTER}; add data with `dvc add data` and commit {POINTER}"
        )
    try:
        (output,) = yaml.safe_load(text)["outs"]
        if output["path"] != _FOLDER:
            raise NoDataError(
                f"{where}: {POINTER} names {output['path']!r}, not the folder {_FOLDER!r}"
            )
    except (yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        raise NoDataError(
            f"{where}: {POINTER} can't be read ({error}); run `dvc add data` again"
        ) from error
    return dict(output)


def _hash_in(output: Mapping[str, Any], where: str) -> str:
    """Return the hash of a folder; version-aware remotes list its files instead."""
    try:
        if "files" in output:
            return _hash_of({each["relpath"]: each["md5"] for each in output["files"]})
        folder_hash = str(output["md5"])
    except (TypeError, KeyError) as error:
        raise NoDataError(
            f"{where}: {POINTER} can't be read ({error}); run `dvc add data` again"
        ) from error
    if not folder_hash.endswith(".dir"):
        raise NoDataError(f"{where}: {POINTER} names a file, not the folder {_FOLDER!r}")
    return folder_hash


def _cut_commits(checkout: Path) -> list[str]:
    """Return the commits whose parents a shallow clone lacks."""
    name = git(checkout, "rev-parse", "--git-path", "shallow")
    path = checkout / (name or "shallow")
    return path.read_text().split() if path.is_file() else []


def uncommitted_data(repository: str) -> str:
    """Return what changed in a checkout's data that no revision has yet; "" for nothing."""
    path = Path(repository)
    if not path.is_dir():
        return ""
    if git(path, "status", "--porcelain", "--", f":/{POINTER}"):
        return f"{POINTER} has uncommitted changes"
    top = git(path, "rev-parse", "--show-toplevel")
    if top and has_changed_files(Path(top), POINTER):
        return f"files in {_FOLDER}/ changed without `dvc add {_FOLDER}`"
    return ""


def fetch(repository: str, version: DataVersion, to: Path) -> None:
    """Copy the data folder to `to`, which appears whole and verified or not at all.

    Files come from the checkout's DVC cache, and the rest from the remotes that DVC would use.

    Raises:
        NotARepositoryError: Neither a checkout nor a URL of one.
        MissingObjectsError: The remote can't be reached, or files are missing or damaged there.
    """
    what = f"the data of commit {version.commit[:12]} in {repository}"
    with _checkout(repository, version.commit) as path, atomic_path(to) as temporary:
        with dvc_files(path, version.commit, what=what) as files:
            files.get(_FOLDER, str(temporary), recursive=True)
        # DVC 2 gave no name of a hash, and hashed text with Unix line ends.
        is_dvc_2 = "hash" not in _pointer(path, version.commit, repository)
        if hash_of_folder(temporary, unix_text=is_dvc_2) != version.hash:
            raise MissingObjectsError(
                f"{what} is damaged: its hash is not {version.hash}; remove .dvc/cache there or "
                "repair the remote"
            )


def hash_of_folder(folder: Path, *, unix_text: bool = False) -> str:
    """Return the hash that `dvc add` gives a folder.

    Args:
        folder: Of files.
        unix_text: As DVC 2 does: text files count as if they had Unix line ends.
    """
    from dvc_data.hashfile.hash import file_md5

    algorithm = "md5-dos2unix" if unix_text else "md5"
    return _hash_of(
        {
            path.relative_to(folder).as_posix(): file_md5(str(path), name=algorithm)
            for path in folder.rglob("*")
            if path.is_file()
        }
    )


def _hash_of(md5: Mapping[str, str]) -> str:
    """Return DVC's hash of a folder, given that of each file."""
    entries = [{"md5": md5[name], "relpath": name} for name in sorted(md5)]
    listing = json.dumps(entries, sort_keys=True).encode()
    return hashlib.md5(listing, usedforsecurity=False).hexdigest() + ".dir"


def check_reachable(repository: str, revision: str) -> None:
    """Check that the data can be fetched, with the list of its files and some of them.

    Raises:
        DataVersionError: No such data, or the remote can't be reached or lacks it.
    """
    version = resolve(repository, revision)
    with (
        _checkout(repository, version.commit) as path,
        dvc_files(path, version.commit, what=f"the data of {revision} in {repository}") as files,
    ):
        names = files.find(_FOLDER)
        for name in names[:: 1 + len(names) // _LOOKED_AT]:
            with files.open(name) as file:
                file.read(1)


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
        # A server that does not answer is noticed before the long limit of a clone.
        done = run_git("ls-remote", "--", repository, "HEAD", seconds=SECONDS_TO_ANSWER)
        if done.returncode == 0:
            done = run_git("clone", "--quiet", "--", repository, folder)
        if done.returncode:
            raise NotARepositoryError(
                f"{repository!r} is no folder and can't be cloned: {done.stderr.strip()}"
            )
        if commit is not None:
            # A remote inside the repository has to be of the same commit as the data.
            git(Path(folder), "checkout", "--quiet", "--detach", commit)
        yield Path(folder)
