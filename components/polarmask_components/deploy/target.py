"""What all places have in common in which models are put into service."""

from dataclasses import dataclass
from typing import Any, Protocol, Self

from polarmask_components.registry.registry import ModelRecord, Registry


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A registered archive as pods find it; all empty where none was deployed yet."""

    version: str = ""
    uri: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, record: ModelRecord, registry: Registry) -> Self:
        """Find a registered archive; UnusableModelError if it is missing or damaged."""
        uri = registry.archive_uri(record)
        return cls(version=record.version, uri=uri, sha256=record.archive_sha256)


@dataclass(frozen=True)
class Deployment:
    """A model in service."""

    version: str
    url: str
    """Where it answers."""
    answer: dict[str, Any]
    """Its answer to an image."""
    trial: dict[str, Any] | None = None
    """Figures of a trial on live requests, with `reason` for people; None: there was none."""


@dataclass(frozen=True)
class Proof:
    """A new version can serve."""

    answer: dict[str, Any]
    """Its answer to an image."""
    trial: dict[str, Any] | None = None
    """As in `Deployment`."""


class DeployTarget(Protocol):
    """Where a model goes into service. The methods are called in this order, by `deploy` alone."""

    @property
    def url(self) -> str:
        """Where the model answers."""

    def prepare(self, registry: Registry) -> None:
        """Check that models of the registry can be served here; finish what a killed run left."""

    def prove(self, model: ServedModel, image: bytes) -> Proof:
        """Start the new version and send it an image; raise unless it answers well."""

    def take_over(self) -> None:
        """The new version is the champion: let it answer all requests."""

    def go_back(self, champion: str | None) -> str:
        """Undo `prove`, however far it came; return in one sentence what answers now.

        A new version that is the champion stays: it was promoted, and only the registry's answer
        was lost.

        Args:
            champion: Of the registry; None also where it can't be read.
        """
