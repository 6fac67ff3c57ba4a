"""Which models there are, what each came from, and which one is the champion.

    models/VERSION.mar     the archive, with the model folder inside; written once
    models/VERSION.json    its record, written last: a version exists once its record does
    models/VERSION.image   the image that it answered before it was promoted, for a rollback
    stopped/VERSION.json   why a candidate is not in service, with its facts; no weights
    champion.json          all promotions, newest last; changed by compare-and-swap

    registry = open_registry("runs/registry")           # or s3://bucket/prefix
    champion = registry.champion()
    record = registry.add(archive, facts)
    registry.promote(record.version, expected=champion.version if champion else None)

VERSION is a hash of the model and its name (`version_of`), so equal models are stored once.
Of two runs that promote at once one wins, and a run that is killed leaves the old champion.
"""

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from polarmask.system.files import atomic_path
from polarmask.system.formats import JsonFormat
from polarmask_components.errors import (
    ConflictError,
    DamagedObjectError,
    StorageError,
    UnknownVersionError,
    UnusableModelError,
)
from polarmask_components.storage.objects import Objects, open_objects
from polarmask_serving.archive.read import Archive, read_archive
from polarmask_serving.errors import ArchiveError

_CHAMPION = "champion.json"
_PROBE = "probe"
_TRIES = 5
_FORMAT = JsonFormat(
    2,
    UnusableModelError,
    "set deploy_registry to a new place, promote another version, or use the release that wrote "
    "it; nothing was changed",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a model besides its bytes."""

    data_commit: str
    data_hash: str
    """DVC's hash of the data folder that the model was trained and evaluated on."""
    code_commit: str
    code_version: str
    config: dict[str, Any]
    categories: list[dict[str, Any]]
    """`polarmask.data.coco.Category` as plain data, in the order of the network's outputs."""
    metrics: dict[str, float]
    """COCO mask AP and related metrics in [0, 1], on the val split of that data by that code."""
    engines: dict[str, Any] = field(default_factory=dict)
    """`EngineRanking` as plain data; empty where engines were not measured."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One registered model."""

    version: str
    created: str
    """UTC, ISO 8601."""
    archive_sha256: str
    archive_size: int
    """Bytes."""
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Why a candidate was not put into service."""

    version: str
    time: str
    """UTC, ISO 8601."""
    reason: str
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One change of the champion."""

    version: str
    previous: str | None
    time: str
    """UTC, ISO 8601."""


def open_registry(uri: str) -> "Registry":
    """Open a registry; it is created by its first model. The place is one for `open_objects`."""
    return Registry(open_objects(uri))


class Registry:
    """Models and their champion, in a folder or in object storage.

    Every method raises StorageError if the place can't be used.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    @property
    def where(self) -> str:
        """The place, for messages."""
        return self._objects.where

    def champion(self) -> ModelRecord | None:
        """Return the model that was promoted last, or None before the first promotion."""
        version = self.champion_version()
        return None if version is None else self.record(version)

    def champion_version(self) -> str | None:
        """Return the version that was promoted last, or None, without reading its record."""
        promotions = self.promotions()
        return promotions[-1].version if promotions else None

    def promotions(self) -> tuple[Promotion, ...]:
        """Return all changes of the champion, oldest first."""
        return self._promotions()[0]

    def versions(self) -> list[str]:
        """Return the versions of all registered models."""
        return self._names("models")

    def stopped_versions(self) -> list[str]:
        """Return the versions of all candidates that were stopped, registered or not."""
        return self._names("stopped")

    def _names(self, folder: str) -> list[str]:
        names = map(PurePosixPath, self._objects.names(folder))
        # Models of format version 1 have folders.
        return [each.stem for each in names if each.suffix == ".json" and len(each.parts) == 2]

    def check_writable(self) -> None:
        """Raise StorageError unless objects can be replaced here, as `promote` replaces them."""
        for _ in range(_TRIES):  # the first may create it, and other runs probe, too
            found = self._objects.read(_PROBE)
            tag = found[1] if found else None
            if self._objects.write(_PROBE, _now().encode(), expected_tag=tag) and found:
                return
        raise StorageError(
            f"{self.where}: replacing an object is refused although its tag {tag} is the current "
            "one, so no model could be promoted; a server or proxy that changes ETags does that"
        )

    def record(self, version: str) -> ModelRecord:
        """Return what is known about a version.

        Raises:
            UnknownVersionError: There is no such model.
            UnusableModelError: Its record is damaged or of another format version.
        """
        record = self.find(version)
        if record is None:
            raise UnknownVersionError(f"{self.where} has no model {version}")
        return record

    def find(self, version: str) -> ModelRecord | None:
        """Return what is known about a version, or None if there is no such model.

        Raises:
            UnusableModelError: Its record is damaged or of another format version.
        """
        name = f"models/{version}.json"
        found = self._objects.read(name)
        if found is None:
            # Format version 1 had a folder for each model.
            if old := self._objects.read(f"models/{version}/record.json"):
                _FORMAT.load(old[0], where=self._objects.uri(f"models/{version}/record.json"))
            return None
        content = _FORMAT.load(found[0], where=self._objects.uri(name))
        try:
            record = ModelRecord(**{**content, "facts": Facts(**content["facts"])})
            if record.version != version:
                raise ValueError(f"it is the record of {record.version}")
        except (KeyError, TypeError, ValueError) as error:
            raise _FORMAT.damaged(self._objects.uri(name), error) from error
        return record

    def add(self, archive: Archive, facts: Facts) -> ModelRecord:
        """Store an archive and its record; an equal version keeps its first archive and record.

        Raises:
            UnusableModelError: What is stored under this version can't be used.
        """
        record = self.find(archive.version)
        if record is not None:
            return record
        sha256, size = archive.sha256, archive.path.stat().st_size
        if not self._objects.create(_archive_of(archive.version), archive.path):
            sha256, size = self._facts_of_stored(archive)
        record = ModelRecord(
            version=archive.version,
            created=_now(),
            archive_sha256=sha256,
            archive_size=size,
            facts=facts,
        )
        data = _FORMAT.dump(asdict(record)).encode()
        self._objects.write(f"models/{record.version}.json", data, expected_tag=None)
        return self.record(record.version)  # another run's, if that one was faster

    def _facts_of_stored(self, archive: Archive) -> tuple[str, int]:
        """Return sha256 and size of an archive that a killed run stored without a record."""
        name = _archive_of(archive.version)
        with TemporaryDirectory() as folder:
            copy = Path(folder) / "model.mar"
            self._objects.download(name, copy, sha256=None)
            try:
                stored = read_archive(copy)
                if stored.version != archive.version:
                    raise ArchiveError(f"it holds version {stored.version}")
            except ArchiveError as error:
                raise UnusableModelError(
                    f"{self._objects.uri(name)} is damaged ({error}); remove it and run again"
                ) from error
            return stored.sha256, copy.stat().st_size

    def record_stop(self, version: str, facts: Facts, reason: str) -> None:
        """Keep why a candidate is not in service; of several reasons, the last one.

        Args:
            version: Registered or not.
            facts: Of the candidate.
            reason: In one sentence.
        """
        name = f"stopped/{version}.json"
        stopped = Stopped(version=version, time=_now(), reason=reason, facts=facts)
        data = _FORMAT.dump(asdict(stopped)).encode()
        for _ in range(_TRIES):
            found = self._objects.read(name)
            if self._objects.write(name, data, expected_tag=found[1] if found else None):
                return
        raise StorageError(f"{self._objects.uri(name)} keeps changing; run again")

    def stopped(self, version: str) -> Stopped | None:
        """Return why a candidate is not in service, or None if nothing stopped it.

        Raises:
            UnusableModelError: The record is damaged or of another format version.
        """
        name = f"stopped/{version}.json"
        found = self._objects.read(name)
        if found is None:
            return None
        content = _FORMAT.load(found[0], where=self._objects.uri(name))
        try:
            return Stopped(**{**content, "facts": Facts(**content["facts"])})
        except (KeyError, TypeError) as error:
            raise _FORMAT.damaged(self._objects.uri(name), error) from error

    def keep_image(self, version: str, image: bytes) -> None:
        """Keep the image that a version answered; its first one stays."""
        self._objects.write(f"models/{version}.image", image, expected_tag=None)

    def image(self, version: str) -> bytes | None:
        """Return the image that a version answered before it was promoted, if it was kept."""
        found = self._objects.read(f"models/{version}.image")
        return None if found is None else found[0]

    def archive_uri(self, record: ModelRecord) -> str:
        """Return the archive's address: s3://bucket/key, or an absolute path.

        Raises:
            UnusableModelError: It is missing, or has another size than the stored one.
        """
        name = _archive_of(record.version)
        size = self._objects.size(name)
        if size != record.archive_size:
            raise UnusableModelError(
                f"{self._objects.uri(name)} has {size or 0} bytes, not {record.archive_size}: it "
                f"is damaged; remove it and models/{record.version}.json, and run again"
            )
        return self._objects.uri(name)

    def fetch(self, version: str, to: Path) -> Path:
        """Copy an archive to the file `to`, which appears whole and verified or not at all.

        Raises:
            UnknownVersionError: There is no such model.
            UnusableModelError: The archive is missing, or is not what was stored.
        """
        record = self.record(version)
        try:
            with atomic_path(to) as temporary:
                self._objects.download(
                    _archive_of(version), temporary, sha256=record.archive_sha256
                )
        except DamagedObjectError as error:
            raise UnusableModelError(f"{error}; promote another version and remove it") from error
        return to

    def promote(self, version: str, *, expected: str | None) -> None:
        """Make a version the champion if the champion is still the expected one.

        Repeating a promotion that went through changes nothing.

        Args:
            version: A registered model.
            expected: Version of the champion the candidate was compared with; None if there was
                none.

        Raises:
            UnknownVersionError: There is no such model.
            ConflictError: Another version was promoted meanwhile. Nothing was changed.
        """
        self.record(version)
        promotions, tag = self._promotions()
        current = promotions[-1].version if promotions else None
        if current == version:
            return
        promotion = Promotion(version=version, previous=current, time=_now())
        plain = [asdict(each) for each in (*promotions, promotion)]
        data = _FORMAT.dump({"promotions": plain}).encode()
        if current == expected and self._objects.write(_CHAMPION, data, expected_tag=tag):
            return
        raise ConflictError(
            f"{self.where}: the champion is {self.champion_version()}, not {expected} as "
            f"expected; {version} was not promoted. Run again to compare with it"
        )

    def _promotions(self) -> tuple[tuple[Promotion, ...], str | None]:
        found = self._objects.read(_CHAMPION)
        if found is None:
            return (), None
        where = self._objects.uri(_CHAMPION)
        content = _FORMAT.load(found[0], where=where)
        try:
            return tuple(Promotion(**each) for each in content["promotions"]), found[1]
        except (KeyError, TypeError) as error:
            raise _FORMAT.damaged(where, error) from error


def _archive_of(version: str) -> str:
    return f"models/{version}.mar"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
