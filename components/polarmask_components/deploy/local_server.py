"""The TorchServe of this machine, as those see it who only look whether it runs or stop it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarmask_serving.torchserve import launch
from polarmask_serving.torchserve.record import ServerRecord

# LocalServer brings torch with it: seconds that asking whether a server runs should not cost.


@dataclass(frozen=True)
class Deployment:
    """A model in service."""

    version: str
    url: str
    """Where it answers."""
    answer: dict[str, Any]
    """What it said to an image."""
    trial: dict[str, Any] | None = None
    """Figures of a trial on live requests, with `reason` in words; None: there was none."""


def is_serving(target: Path) -> bool:
    """Tell whether a server runs in a folder."""
    record = ServerRecord.read(target)
    if record is None or record.pid is None:
        return False
    return launch.is_running(record.pid, Path(record.scratch))


def stop_server(target: Path) -> None:
    """End the server of a folder, if there is one; a later start loads its champion again.

    Waits for who is putting a version into service there.
    """
    record = ServerRecord.read(target)
    if record is None or record.pid is None:
        return
    from polarmask_serving.torchserve.server import LocalServer

    LocalServer(target).stop()
