"""What a server's folder remembers: where it runs and which version is the champion."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from polarmask.system.files import write_text
from polarmask_serving.errors import ServerError

FILE = "server.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ServerRecord:
    """Content of `server.json`."""

    name: str
    """Of the model, in URLs."""
    batch_size: int
    """Requests that one call of the model may answer."""
    ports: dict[str, int]
    """On 127.0.0.1, by the names of `launch.PORT_NAMES`."""
    pid: int | None
    """Of the Java process; None when it was stopped."""
    scratch: str
    """Folder whose path marks the server's processes."""
    champion: str | None
    """Version that was made default last."""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return None where no server was started yet.

        Raises:
            ServerError: The file is damaged or of an unknown format version.
        """
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version")
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}, this code reads {FORMAT_VERSION}")
            return cls(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ServerError(
                f"{path} can't be read ({error}); end its TorchServe, if it runs, and remove it"
            ) from error

    def write(self, folder: Path) -> None:
        """Write the file atomically."""
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        write_text(folder / FILE, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone, among threads and processes; the lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
