"""All models of a registry, each with what became of it: served, served once, or why not."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from polarmask_components.errors import UnknownVersionError, UnusableModelError
from polarmask_components.registry.registry import Facts, ModelRecord, Promotion, Registry

CHAMPION = "champion"
FORMER = "former champion"
STOPPED = "not served"
REGISTERED = "registered"
UNREADABLE = "unreadable"
_REQUESTS = 16
"""At a time, of one record each."""


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """A registered model, or a candidate of which only the record was kept."""

    version: str
    created: str
    """UTC, ISO 8601; empty if its record can't be read."""
    state: str
    """champion, former champion, not served, registered or unreadable."""
    note: str
    """Since when, until when, or why; for people."""
    promotions: tuple[Promotion, ...]
    """That made it the champion, oldest first."""
    facts: Facts | None
    """None if its record can't be read."""
    record: ModelRecord | None
    """Of the archive; None without one."""


def known_models(registry: Registry) -> list[KnownModel]:
    """Return all models and stopped candidates, newest first.

    Raises:
        StorageError: The registry can't be used.
        UnusableModelError: The list of promotions can't be read.
    """
    look = _Look.at(registry)
    with ThreadPoolExecutor(_REQUESTS) as threads:
        models = threads.map(look.at_model, look.registered | look.stopped)
    return sorted(models, key=lambda each: (each.created, each.version), reverse=True)


def known_model(registry: Registry, name: str) -> KnownModel:
    """Return one model.

    Args:
        registry: Where to look.
        name: Version, its first digits, or `champion`.

    Raises:
        UnknownVersionError: There is none of this name, or several.
    """
    return _Look.at(registry).at_model(find_version(registry, name))


def find_version(registry: Registry, name: str) -> str:
    """Return a version, by itself, its first digits, or `champion`.

    Raises:
        UnknownVersionError: There is none of this name, or several.
    """
    if name == CHAMPION:
        champion = registry.champion_version()
        if champion is None:
            raise UnknownVersionError(f"{registry.where} has no champion yet")
        return champion
    versions = {*registry.versions(), *registry.stopped_versions()}
    if name in versions:
        return name
    found = sorted(each for each in versions if name and each.startswith(name))
    if len(found) == 1:
        return found[0]
    several = f"; {', '.join(found)} begin with it" if found else ""
    raise UnknownVersionError(
        f"{registry.where} has no model {name}{several}; `polarmask models list` shows all"
    )


def previous_champion(registry: Registry) -> str:
    """Return the version that was the champion before the current one first became it.

    So roll-backs one after the other go back further, and never to a model that was rolled back.

    Raises:
        UnknownVersionError: There was none.
    """
    promotions = registry.promotions()
    current = promotions[-1].version if promotions else None
    previous = next((each.previous for each in promotions if each.version == current), None)
    if previous is not None:
        return previous
    raise UnknownVersionError(
        f"{registry.where} had no champion before {current or 'the current one'}; name a version "
        "that `polarmask models list` shows"
    )


@dataclass(frozen=True)
class _Look:
    """What a registry lists."""

    registry: Registry
    registered: frozenset[str]
    stopped: frozenset[str]
    promotions: tuple[Promotion, ...]

    @classmethod
    def at(cls, registry: Registry) -> Self:
        versions, stopped = registry.versions(), registry.stopped_versions()
        return cls(registry, frozenset(versions), frozenset(stopped), registry.promotions())

    def at_model(self, version: str) -> KnownModel:
        own = tuple(each for each in self.promotions if each.version == version)
        unreadable, stopped = "", None
        try:
            if version in self.stopped:
                stopped = self.registry.stopped(version)
        except UnusableModelError as error:  # says nothing about the model itself
            unreadable = str(error)
        try:
            record = self.registry.record(version) if version in self.registered else None
        except UnusableModelError as error:
            return _unreadable(version, str(error), own)
        if record is None and unreadable:
            return _unreadable(version, unreadable, own)
        if own:
            state, note = _when(version, self.promotions)
        elif stopped is not None or unreadable:
            state, note = STOPPED, stopped.reason if stopped else unreadable
        else:  # a run that was killed, or one that is about to deploy it
            state, note = REGISTERED, "passed the gate, and was not deployed"
        return KnownModel(
            version=version,
            created=record.created if record else stopped.time if stopped else "",
            state=state,
            note=note,
            promotions=own,
            facts=record.facts if record else stopped.facts if stopped else None,
            record=record,
        )


def _unreadable(version: str, why: str, promotions: tuple[Promotion, ...]) -> KnownModel:
    return KnownModel(
        version=version,
        created="",
        state=UNREADABLE,
        note=why,
        promotions=promotions,
        facts=None,
        record=None,
    )


def _when(version: str, promotions: Sequence[Promotion]) -> tuple[str, str]:
    """Return the state of a version that was promoted, and since or until when."""
    if promotions[-1].version == version:
        return CHAMPION, f"since {minute(promotions[-1].time)}"
    times = _ends(version, promotions)
    return FORMER, f"until {minute(max(times))}"


def _ends(version: str, promotions: Sequence[Promotion]) -> Iterator[str]:
    for before, after in pairwise(promotions):
        if before.version == version:
            yield after.time


def minute(time: str) -> str:
    """Return a time of the registry without seconds: 2026-03-01 14:05."""
    return time[:16].replace("T", " ")
