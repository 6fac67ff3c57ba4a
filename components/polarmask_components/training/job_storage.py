"""What a training job keeps in object storage, independent of pods and launcher.

    STORAGE/inputs/SHA256        files that pods fetch, of all jobs: each is stored once
    STORAGE/JOB/inputs.json      which of them, and under which paths; written by the launcher
    STORAGE/JOB/start.json       the last start of the first node; the others restart with it
    STORAGE/JOB/latest.json      the last two snapshots of the run folder
    STORAGE/JOB/result.json      model and run folder, once the training has ended
    STORAGE/JOB/failure.json     why it failed, for a try that follows at once
    STORAGE/JOB/objects/SHA256   their files

Files are stored before the JSON that names them, so what is named is whole.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from polarmask.system.formats import JsonFormat
from polarmask.training.run_folder import CHECKPOINT
from polarmask_components.errors import StorageError
from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_components.storage.manifest import (
    FileFacts,
    Manifest,
    from_plain,
    manifest_of,
    to_plain,
)
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.storage.transfer import download_files, upload_files

logger = logging.getLogger(__name__)

_FORMAT = JsonFormat(1, StorageError, "delete the folder it is in and start the train step again")
_INPUTS, _LATEST, _RESULT = "inputs.json", "latest.json", "result.json"
_START, _FAILURE = "start.json", "failure.json"
_SECONDS_OF_FAILURE = 10 * 60.0
"""Kubeflow's own tries follow within a minute; a person's comes later and deserves a job."""
_SNAPSHOTS_KEPT = 2
"""The newest and, should it be damaged, the one before."""


@dataclass(frozen=True)
class Snapshot:
    """A run folder as of one step."""

    step: int
    files: dict[str, FileFacts]


@dataclass(frozen=True)
class Result:
    """What a finished job stored."""

    spec: str
    """Hash of the job's spec."""
    model: dict[str, FileFacts]
    run: dict[str, FileFacts]


class JobStorage:
    """The folder of one job."""

    def __init__(
        self, storage: str, job: str, *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._objects, self._inputs = (
            S3Objects.from_uri(f"{storage.rstrip('/')}/{place}", deadline_seconds=deadline_seconds)
            for place in (job, "inputs")
        )
        self.where = self._objects.where

    def stored_input(self, name: str) -> Manifest:
        """Return the files of an input that an earlier try stored; none unless all are there."""
        plain = self._read(_INPUTS) or {}
        manifest = from_plain(plain[name]) if name in plain else {}
        known = set(self._inputs.names()) if manifest else set()
        return manifest if all(facts.sha256 in known for facts in manifest.values()) else {}

    def store_inputs(
        self, folders: Mapping[str, Path], *, kept: Mapping[str, Manifest] = MappingProxyType({})
    ) -> None:
        """Store what the pods fetch: folders by name. Files that another job stored are not sent.

        Kubeflow's own copy of them may lie in a store whose keys only steps have.

        Args:
            folders: On this machine.
            kept: Inputs that are stored, by name, as `stored_input` returned them.
        """
        inputs = {name: manifest_of(folder) for name, folder in folders.items()}
        known = set(self._inputs.names())
        files = {
            facts.sha256: folders[name] / path
            for name, manifest in inputs.items()
            for path, facts in manifest.items()
            if facts.sha256 not in known
        }
        upload_files(self._inputs, files, what="inputs")
        named = {**inputs, **kept}
        self._write(_INPUTS, {name: to_plain(manifest) for name, manifest in named.items()})

    def fetch_inputs(self, to: Path) -> None:
        """Fetch the folders that `store_inputs` was given, into a folder of this machine.

        Raises:
            StorageError: The launcher stored none, or they can't be fetched.
        """
        plain = self._read(_INPUTS)
        if plain is None:
            raise StorageError(f"{self.where} holds no {_INPUTS}; start the train step again")
        for name, manifest in plain.items():
            download_files(
                *(self._inputs, from_plain(manifest), to / name),
                what=name,
                name_of=lambda _, facts: facts.sha256,
            )

    def write_start(self, start: str) -> None:
        """Store the id of a start of the first node."""
        self._write(_START, {"start": start})

    def start(self) -> str:
        """Return the id of the first node's last start, or ""."""
        plain = self._read(_START)
        return str(plain["start"]) if plain else ""

    def write_failure(self, message: str) -> None:
        """Store why the job failed for good."""
        self._write(_FAILURE, {"time": time.time(), "message": message})

    def fresh_failure(self) -> str:
        """Return why the job failed for good in the last ten minutes, or ""."""
        plain = self._read(_FAILURE)
        is_fresh = plain is not None and time.time() - plain["time"] < _SECONDS_OF_FAILURE
        return str(plain["message"]) if plain and is_fresh else ""

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots, newest first."""
        plain = self._read(_LATEST) or {"snapshots": []}
        return [Snapshot(each["step"], from_plain(each["files"])) for each in plain["snapshots"]]

    def save_snapshot(self, folder: Path, step: int) -> None:
        """Store a run folder's files, unless a snapshot of this step or a later one is there.

        Raises:
            StorageError: The storage can't be used; the snapshots before are as they were.
        """
        before = self.snapshots()
        if before and before[0].step >= step:
            return
        new = Snapshot(step, manifest_of(folder))
        known = {facts.sha256 for each in before for facts in each.files.values()}
        self._store(new.files, folder, known, what=f"snapshot of step {step}")
        kept = [new, *before][:_SNAPSHOTS_KEPT]
        plain = [{"step": each.step, "files": to_plain(each.files)} for each in kept]
        self._write(_LATEST, {"snapshots": plain})
        needed = {facts.sha256 for each in kept for facts in each.files.values()}
        self._objects.delete(_object(sha256) for sha256 in known - needed)

    def restore_snapshot(self, to: Path, *, newer_than: int) -> int | None:
        """Fetch the newest snapshot that is whole, if it is newer; return its step.

        Args:
            to: Folder to make.
            newer_than: Step that the caller has already; -1 for none.

        Raises:
            StorageError: There are newer snapshots, and none can be used.
        """
        problem: StorageError | None = None
        for snapshot in self.snapshots():
            if snapshot.step <= newer_than:
                return None
            # A folder of its own: after an error other threads may still write files.
            own = to.with_name(f"{to.name}-{snapshot.step}")
            try:
                self._fetch(snapshot.files, own, what=f"snapshot of step {snapshot.step}")
                own.replace(to)
            except StorageError as error:
                logger.warning("snapshot of step %d can't be used: %s", snapshot.step, error)
                problem = problem or error
            else:
                return snapshot.step
        if problem is not None:
            raise problem
        return None

    def store_result(self, model: Path, run: Path, *, spec: str) -> None:
        """Store the results: model folder, and run folder without checkpoint."""
        files = manifest_of(model)
        self._store(files, model, set(), what="model")
        run_files = {
            name: facts
            for name, facts in manifest_of(run).items()
            if not _is_temporary(name)
            and name != CHECKPOINT
            and not (run / name).is_relative_to(model)
        }
        self._store(run_files, run, set(), what="run folder")
        plain = {"spec": spec, "model": to_plain(files), "run": to_plain(run_files)}
        self._write(_RESULT, plain)

    def result(self) -> Result | None:
        """Return the results if the job has finished."""
        plain = self._read(_RESULT)
        if plain is None:
            return None
        return Result(plain["spec"], from_plain(plain["model"]), from_plain(plain["run"]))

    def fetch_result(self, result: Result, *, model: Path, run: Path) -> None:
        """Fetch model folder and run folder, verified."""
        self._fetch(result.model, model, what="model")
        self._fetch(result.run, run, what="run folder")

    def forget_snapshots(self, result: Result) -> None:
        """Remove everything but the results."""
        kept = {
            _object(each.sha256) for files in (result.model, result.run) for each in files.values()
        }
        self._objects.delete(set(self._objects.names()) - kept - {_RESULT})

    def remove(self) -> None:
        """Remove everything of the job; inputs stay, other jobs may need them."""
        self._objects.delete(self._objects.names())

    def _store(self, files: Manifest, folder: Path, known: set[str], *, what: str) -> None:
        paths = {
            _object(facts.sha256): folder / name
            for name, facts in files.items()
            if facts.sha256 not in known
        }
        upload_files(self._objects, paths, what=what)

    def _fetch(self, files: Manifest, to: Path, *, what: str) -> None:
        download_files(
            self._objects, files, to, what=what, name_of=lambda _, facts: _object(facts.sha256)
        )

    def _write(self, name: str, plain: Mapping[str, Any]) -> None:
        self._objects.put(name, _FORMAT.dump(plain).encode())

    def _read(self, name: str) -> dict[str, Any] | None:
        found = self._objects.read(name)
        return None if found is None else _FORMAT.load(found[0], where=self._objects.uri(name))


def _is_temporary(name: str) -> bool:
    """Return whether a killed process left this file in the middle of a write."""
    return any(part.startswith(".") for part in name.split("/"))


def _object(sha256: str) -> str:
    return f"objects/{sha256}"
