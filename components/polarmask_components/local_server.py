"""The TorchServe of this machine, as those see it who only ask or stop it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarmask_serving import launch
from polarmask_serving.record import ServerRecord

# LocalServer brings torch with it: seconds that asking whether a server runs should not cost.


@dataclass(frozen=True)
class Deployment:
    """A model in service."""

    version: str
    url: str
    """Where it answers."""
    answer: dict[str, Any]
    """What it said to an image."""


def is_serving(target: Path) -> bool:
    """Tell whether a server runs in a folder."""
    record = ServerRecord.read(target)
    if record is None or record.pid is None:
        return False
    return launch.is_running(record.pid, Path(record.scratch))


def ask_champion(target: Path, *, name: str, image: bytes) -> Deployment | None:
    """Return what this machine's champion says to an image; its server is started if need be.

    Args:
        target: Folder of the server.
        name: Of the model, in URLs.
        image: JPEG or PNG.

    Returns:
        None if nothing was deployed there yet.

    Raises:
        ServingError: The server does not start or does not answer.
    """
    record = ServerRecord.read(target)
    if record is None or record.champion is None:
        return None
    from polarmask_serving.server import LocalServer

    server = LocalServer.attach_or_start(target, name=name)
    return Deployment(record.champion, server.predict_url, server.predict(image))


def stop_server(target: Path) -> None:
    """End the server of a folder, if there is one; a later start loads its champion again."""
    record = ServerRecord.read(target)
    if record is None or record.pid is None:
        return
    from polarmask_serving.server import LocalServer

    LocalServer(target.resolve(), record).stop()
