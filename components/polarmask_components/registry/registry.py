"""Which models there are, what each came from, and which one is the champion.

    models/VERSION/model/...      the model folder; VERSION is its content's hash, so never changed
    models/VERSION/record.json    written last: a version exists once its record does
    champion.json                 all promotions, newest last; moves by compare-and-swap

    registry = open_registry("runs/registry")           # or s3://bucket/prefix
    champion = registry.champion()
    record = registry.add(Path("runs/first/model"), facts)
    registry.promote(record.version, expected=champion.version if champion else None)

Two runs that promote at once can't both win, and a run that is killed leaves the old champion.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from polarmask.system.files import (
    atomic_path,
    leaves_folder,
    sha256_of_file,
    sha256_of_files,
    tree_sha256,
)
from polarmask_components.errors import (
    ConflictError,
    RegistryError,
    UnknownVersionError,
    UnusableModelError,
)

FORMAT_VERSION = 1
_CHAMPION = "champion.json"
_PROBE = "probe"
_VERSION_DIGITS = 12
"""Hex digits; enough for 10 million models and short enough for a URL."""


class ObjectStore(Protocol):
    """Named bytes, on this machine or elsewhere. Names have slashes, like S3 keys."""

    where: str
    """The place, for messages."""

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Return content and its tag, or None if there is no such object."""

    def write(self, name: str, data: bytes, *, expected_tag: str | None) -> bool:
        """Write if the object still has this tag (None: does not exist); tell whether it did."""

    def upload(self, name: str, file: Path) -> None:
        """Store a file, as a whole or not at all."""

    def download(self, name: str, to: Path) -> None:
        """Fetch an object to a file; RegistryError if there is none."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about a model besides its bytes."""

    data_commit: str
    data_hash: str
    """DVC's hash of the data folder the model was trained and judged on."""
    code_commit: str
    code_version: str
    config: dict[str, Any]
    metrics: dict[str, float]
    """COCO mask AP and its kin in [0, 1], measured on the val split of that data by that code."""
    engines: dict[str, Any] = field(default_factory=dict)
    """`EngineRanking` as plain data; empty where engines were not measured."""


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """One registered model."""

    version: str
    created: str
    """UTC, ISO 8601."""
    files: dict[str, str]
    """sha256 by path within the model folder."""
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One move of the champion pointer."""

    version: str
    previous: str | None
    time: str
    """UTC, ISO 8601."""


def open_registry(uri: str) -> "Registry":
    """Open a registry; it is created by its first model. The place is one for `open_objects`."""
    return Registry(open_objects(uri))


def open_objects(uri: str) -> ObjectStore:
    """Open the place where a registry and what stands beside it lie.

    Args:
        uri: A folder, `file:///folder`, or `s3://bucket/prefix`. For S3 the endpoint and
            credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...).

    Raises:
        RegistryError: No such kind of place.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme == "s3" and separator:
        from polarmask_components.registry.s3 import S3Objects

        return S3Objects.from_uri(uri)
    if (separator and scheme != "file") or not uri:
        raise RegistryError(f"{uri!r} is no registry; give a folder or s3://bucket/prefix")
    from polarmask_components.registry.local import LocalObjects

    return LocalObjects(Path(rest if separator else uri))


class Registry:
    """Models and their champion, in an object store."""

    def __init__(self, objects: ObjectStore) -> None:
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
        promotions, _ = self._promotions()
        return promotions[-1].version if promotions else None

    def check_writable(self) -> None:
        """Raise RegistryError unless objects can be written here, as `promote` writes them."""
        found = self._objects.read(_PROBE)
        self._objects.write(_PROBE, _now().encode(), expected_tag=found[1] if found else None)

    def history(self) -> tuple[Promotion, ...]:
        """Return all promotions, oldest first."""
        return self._promotions()[0]

    def record(self, version: str) -> ModelRecord:
        """Return what is known about a version.

        Raises:
            UnknownVersionError: No such model.
            UnusableModelError: Its record is damaged or of an unknown format version.
        """
        name = f"models/{version}/record.json"
        found = self._objects.read(name)
        if found is None:
            raise UnknownVersionError(f"{self.where} holds no model {version}")
        content = self._parse(found[0], name)
        try:
            record = ModelRecord(**{**content, "facts": Facts(**content["facts"])})
            if _version_of(record.files) != version or any(map(leaves_folder, record.files)):
                raise ValueError("it names other files than were stored")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnusableModelError(
                f"{self.where}: {name} is damaged ({error}); promote another version"
            ) from error
        return record

    def add(self, model: Path, facts: Facts) -> ModelRecord:
        """Store a model folder; an equal one that is there already keeps its first record.

        Raises:
            RegistryError: No such folder, or the place can't be written.
        """
        files = sha256_of_files(model)
        if not files:
            raise RegistryError(f"{model} holds no files; give a model folder, as RUN/model")
        record = ModelRecord(
            version=_version_of(files),
            created=_now(),
            files=files,
            facts=facts,
        )
        folder = f"models/{record.version}"
        if self._objects.read(f"{folder}/record.json") is None:
            for name in files:
                self._objects.upload(f"{folder}/model/{name}", model / name)
            plain = _to_json({"format_version": FORMAT_VERSION, **asdict(record)})
            self._objects.write(f"{folder}/record.json", plain, expected_tag=None)
        return self.record(record.version)

    def fetch(self, version: str, to: Path, *, only: Collection[str] = ()) -> Path:
        """Copy a model folder to `to`, which appears whole and verified or not at all.

        Args:
            version: A registered model.
            to: Folder to make.
            only: Names of the files to copy; empty for all.

        Raises:
            UnknownVersionError: No such model.
            UnusableModelError: A file is not what was stored.
        """
        record = self.record(version)
        with atomic_path(to) as temporary:
            for name, digest in record.files.items():
                if only and name not in only:
                    continue
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                self._objects.download(f"models/{version}/model/{name}", temporary / name)
                if sha256_of_file(temporary / name) != digest:
                    raise UnusableModelError(
                        f"{self.where}: {name} of model {version} was changed after it was "
                        "stored; promote another version and remove this one"
                    )
        return to

    def promote(self, version: str, *, expected: str | None) -> None:
        """Make a version the champion if the champion is still the expected one.

        Repeating a promotion that went through changes nothing.

        Args:
            version: A registered model.
            expected: Version of the champion the candidate was compared with; None if there was
                none.

        Raises:
            UnknownVersionError: No such model.
            ConflictError: Another version was promoted meanwhile. Nothing was changed.
        """
        self.record(version)
        promotions, tag = self._promotions()
        current = promotions[-1].version if promotions else None
        if current == version:
            return
        promotion = Promotion(version=version, previous=current, time=_now())
        data = _to_json(
            {
                "format_version": FORMAT_VERSION,
                "promotions": [asdict(each) for each in (*promotions, promotion)],
            }
        )
        if current == expected and self._objects.write(_CHAMPION, data, expected_tag=tag):
            return
        newest = self._promotions()[0]
        raise ConflictError(
            f"{self.where}: the champion is {newest[-1].version if newest else None}, not "
            f"{expected} as expected; {version} was not promoted. Run again to compare with it"
        )

    def _promotions(self) -> tuple[tuple[Promotion, ...], str | None]:
        found = self._objects.read(_CHAMPION)
        if found is None:
            return (), None
        content = self._parse(found[0], _CHAMPION)
        try:
            return tuple(Promotion(**each) for each in content["promotions"]), found[1]
        except (KeyError, TypeError) as error:
            raise UnusableModelError(f"{self.where}: {_CHAMPION} is damaged ({error})") from error

    def _parse(self, data: bytes, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(data)
            version = content.pop("format_version")
        except (ValueError, AttributeError, KeyError) as error:
            raise UnusableModelError(f"{self.where}: {name} can't be read ({error})") from error
        if version != FORMAT_VERSION:
            raise UnusableModelError(
                f"{self.where}: {name} has format version {version}, this code reads "
                f"{FORMAT_VERSION}; use the release that wrote it"
            )
        return content


def _version_of(files: Mapping[str, str]) -> str:
    """Return the version that follows from the hashes of a model's files."""
    return tree_sha256(files)[:_VERSION_DIGITS]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _to_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
