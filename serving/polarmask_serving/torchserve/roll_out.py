"""Put a new model version into service, or leave the old one where it is."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from polarmask_serving.archive.read import Archive
from polarmask_serving.errors import ArchiveError, ServerError
from polarmask_serving.torchserve.server import LocalServer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RollOut:
    """How it went."""

    promoted: bool
    """The new version is the default one now."""
    version: str
    """The new version."""
    previous: str | None
    """The version that was the default before."""
    reason: str
    """One sentence for people."""
    answer: dict[str, Any] = field(default_factory=dict)
    """What the new version said to the image; empty if it said nothing."""


def roll_out(
    server: LocalServer,
    archive: Archive,
    *,
    image: bytes,
    confirm: Callable[[], object] | None = None,
    time_out: float = 150,
) -> RollOut:
    """Load a version beside the champion, try it with an image, then make it the default.

    Until the last step the champion answers all requests that name no version; if any step fails
    the new version is dropped and the champion stays. After success the others are dropped.

    Args:
        server: A running server.
        archive: The new version.
        image: JPEG or PNG the new version has to answer.
        confirm: Called after the trial and before the switch, for example to promote in a
            registry. What it raises is passed on, and the champion stays.
        time_out: Seconds for loading, and again for the answer.
    """
    version, answer = archive.version, dict[str, Any]()
    with server.alone():
        previous = server.champion
        try:
            server.keep_only_champion()  # frees what a run that was cut off left
            if not server.serves(archive):  # else a step is repeated after its success
                server.register(archive, time_out=time_out)
            answer = server.predict(image, version=version, time_out=time_out)
            check_answer(answer, archive.name, version)
            if confirm is not None:
                confirm()
            server.set_default(version)
        except (ArchiveError, ServerError) as error:
            return RollOut(False, version, previous, str(error), answer)
        finally:
            _tidy(server)
    reason = f"version {version} answers, {len(answer['instances'])} instances found"
    return RollOut(True, version, previous, reason, answer)


def _tidy(server: LocalServer) -> None:
    try:
        server.keep_only_champion()
    except ServerError as error:
        _log.warning("a version without use stays loaded until the next roll-out: %s", error)


def check_answer(answer: dict[str, Any], name: str, version: str) -> None:
    """Raise ServerError unless the answer has our schema and comes from this version."""
    expected = {"name": name, "version": version}
    if answer.get("model") != expected:
        raise ServerError(f"the answer comes from {answer.get('model')}, not from {expected}")
    instances = answer.get("instances")
    if not isinstance(instances, list):
        raise ServerError(f"the answer has no instances: {str(answer)[:200]}")
    for instance in instances:
        fields = {"category_id", "category", "score", "bbox", "polygon"}
        # An instance in several parts has all its outlines in `polygons`.
        if not isinstance(instance, dict) or set(instance) - {"polygons"} != fields:
            raise ServerError(f"an instance has not the fields {sorted(fields)}: {instance!r:.200}")
        if not _in_range(instance):
            raise ServerError(f"an instance is out of range: {instance!r:.200}")


def _in_range(instance: dict[str, Any]) -> bool:
    try:
        return 0 <= instance["score"] <= 1 and len(instance["bbox"]) == 4
    except TypeError:
        return False
