"""A TorchServe of this machine, found again by later processes.

Everything about it lies in one folder: `server.json` (where it runs, which version is the
champion), `store/` (archives), `server.log`. The champion is what was made default last; a server
that starts in the folder, after a reboot or a kill, loads it before it counts as started. Nothing
is remembered outside the folder, so handles of several processes agree at all times.

    server = LocalServer.attach_or_start(Path("runs/server"))
    roll_out(server, archive, image=Path("some.png").read_bytes())
    server.predict(image)["instances"]
    server.stop()
"""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from polarmask.system.files import atomic_path, sha256_of_file
from polarmask_serving.archive.read import Archive
from polarmask_serving.errors import (
    ArchiveError,
    PortTakenError,
    RegistrationError,
    ServerError,
)
from polarmask_serving.torchserve import launch
from polarmask_serving.torchserve.management import ModelClient
from polarmask_serving.torchserve.probe import Target
from polarmask_serving.torchserve.record import ServerRecord, locked
from polarmask_serving.torchserve.server_log import start_error, worker_error

_POLL_SECONDS = 0.1
_log = logging.getLogger(__name__)


class LocalServer:
    """Handle on the server of one folder, which serves versions of one model.

    Attributes:
        folder: Absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        name: str = "polarmask",
        port: int | None = None,
        batch_size: int = 1,
        time_out: float = 60,
    ) -> Self:
        """Start TorchServe on 127.0.0.1 and load the folder's champion, if it has one.

        Args:
            folder: Holds all of it; made if absent. Its path may be long and have spaces.
            name: Name of the model it serves.
            port: Of the prediction API; None takes a free one.
            batch_size: Requests that one call of the model may answer; above 1 only GPUs gain.
            time_out: Seconds until the server must answer.

        Raises:
            ServerError: A server runs in the folder already, or this one won't start.
            RegistrationError: The champion won't load.
        """
        with locked(folder):
            server = cls(folder)
            server._start(name, port, batch_size, time_out)
        return server

    @classmethod
    def attach_or_start(cls, folder: Path, *, name: str = "polarmask") -> Self:
        """Return the server that runs in the folder; start one if none does or it hangs.

        Either way the folder's champion, if it has one, answers when this returns.

        Raises:
            ServerError: It serves a model of another name, or a new one won't start.
            RegistrationError: The champion won't load.
        """
        server = cls(folder)
        with locked(folder):
            server._attach_or_start(name)
        return server

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder among threads and processes, with a server that runs.

        Who held it before may have stopped the server or put another version into service.

        Raises:
            ServerError: The server was ended meanwhile and does not start again.
            RegistrationError: The champion won't load.
        """
        with locked(self.folder):
            self._attach_or_start(self._record.name)
            yield

    def _attach_or_start(self, name: str) -> None:
        record = ServerRecord.read(self.folder)
        if record is not None and self.is_running():
            if record.name != name:
                raise ServerError(f"{self.folder} serves {record.name}, not {name}")
            try:
                self._restore_champion()
            except ServerError as error:
                _log.warning("the server in %s is ill (%s); starting it anew", self.folder, error)
                self._end()
            else:
                return
        self._start(name, None, 1 if record is None else record.batch_size, 60)

    def _start(self, name: str, port: int | None, batch_size: int, time_out: float) -> None:
        (self.folder / launch.STORE).mkdir(exist_ok=True)
        before = ServerRecord.read(self.folder)
        if before is not None:
            if self.is_running():
                raise ServerError(f"a server runs in {self.folder}; attach to it or stop it first")
            self._end()  # what a killed server may have left
        champion = before.champion if before is not None and before.name == name else None
        try:
            self._launch(name, port, batch_size, champion, time_out)
        except PortTakenError:
            if port is not None:
                raise
            # Somebody took a free port between our choice and Java's start.
            self._launch(name, None, batch_size, champion, time_out)

    def _launch(
        self, name: str, port: int | None, batch_size: int, champion: str | None, time_out: float
    ) -> None:
        ports = launch.choose_ports(port)
        scratch = launch.make_scratch()
        launch.write_config(self.folder, ports, {"enable_model_api": "true"})
        record = ServerRecord(
            name=name,
            batch_size=batch_size,
            ports=ports,
            pid=None,
            scratch=str(scratch),
            champion=champion,
        )
        record.write(self.folder)  # first, so that a server can't be lost
        replace(record, pid=launch.spawn(self.folder, scratch)).write(self.folder)
        try:
            self._wait_until_up(time_out)
            self._restore_champion()
        except BaseException:
            self._end()
            raise

    def _wait_until_up(self, time_out: float) -> None:
        deadline = time.monotonic() + time_out
        while not self.client.is_up():
            if not self.is_running():
                why = start_error(self.log)
                kind = PortTakenError if "Failed to bind" in why else ServerError
                raise kind(f"TorchServe does not start: {why}; see {self.log}")
            if time.monotonic() > deadline:
                raise ServerError(f"TorchServe does not answer after {time_out:.0f} s; {self.log}")
            time.sleep(_POLL_SECONDS)

    def _restore_champion(self) -> None:
        """Make the server agree with the record."""
        if self.champion is None:
            self.client.versions()  # does it answer at all?
            return
        if self.champion not in self.client.versions():
            self._load(self.champion, time_out=150)
        self.client.wait_ready(self.champion)
        self.client.set_default(self.champion)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _record(self) -> ServerRecord:
        """What the folder says now: another process may have written it since this one did."""
        record = ServerRecord.read(self.folder)
        if record is None:
            raise ServerError(f"no server was started in {self.folder}")
        return record

    @property
    def client(self) -> ModelClient:
        """Speaks to the server."""
        record, url = self._record, "http://127.0.0.1"
        return ModelClient(
            inference_url=f"{url}:{record.ports['inference_port']}",
            management_url=f"{url}:{record.ports['management_port']}",
            name=record.name,
        )

    @property
    def predict_url(self) -> str:
        """Where the default version answers."""
        client = self.client
        return f"{client.inference_url}/predictions/{client.name}"

    @property
    def target(self) -> Target:
        """What a proxy in front has to know: the default version is the one that answers."""
        record = self._record
        return Target(ports=dict(record.ports), name=record.name, version=None, workers=1)

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds the metrics."""
        return f"http://127.0.0.1:{self._record.ports['metrics_port']}/metrics"

    @property
    def pid(self) -> int | None:
        """Of the Java process; None after `stop`."""
        return self._record.pid

    @property
    def champion(self) -> str | None:
        """Version that was made default last; loaded again when a server starts in the folder."""
        return self._record.champion

    @property
    def log(self) -> Path:
        """What server and workers said since the start."""
        return self.folder / launch.LOG

    def is_running(self) -> bool:
        """Tell whether the process is there; it may still not answer."""
        record = self._record
        return record.pid is not None and launch.is_running(record.pid, Path(record.scratch))

    def predict(
        self, image: bytes, *, version: str | None = None, time_out: float = 60
    ) -> dict[str, Any]:
        """Send the bytes of an image; see `ModelClient.predict`."""
        return self.client.predict(image, version=version, time_out=time_out)

    def register(self, archive: Archive, *, time_out: float = 150) -> None:
        """Load a version beside the others; it answers under its own URL.

        Args:
            archive: Copied into the folder's store.
            time_out: Seconds until a picture must have gone through its model.

        Raises:
            ArchiveError: The file changed since it was described.
            RegistrationError: The version is taken, or no worker came up; what was registered of
                it is gone again, the other versions are untouched.
        """
        version = archive.version
        if archive.name != self.client.name:
            raise RegistrationError(f"{archive.path} is {archive.name}, not {self.client.name}")
        if version in self.client.versions():
            raise RegistrationError(
                f"version {version} is served already; give the new one its own"
            )
        with atomic_path(self._stored(version)) as temporary:
            shutil.copyfile(archive.path, temporary)
            if sha256_of_file(temporary) != archive.sha256:
                raise ArchiveError(f"{archive.path} changed since it was built; build it again")
        try:
            self._load(version, time_out=time_out)
        except RegistrationError:
            self._stored(version).unlink()
            raise

    def _load(self, version: str, *, time_out: float) -> None:
        logged = self.log.stat().st_size
        archive = self._stored(version)
        try:
            size = self._record.batch_size
            self.client.register(archive.name, batch_size=size, time_out=time_out)
            self.client.wait_ready(version, time_out=10)
        except ServerError as error:
            why = worker_error(self.log, self.client.name, version, since=logged) or str(error)
            with contextlib.suppress(ServerError):
                self.client.unregister(version)
            raise RegistrationError(
                f"version {version} did not come up: {why} (see {self.log})"
            ) from error

    def set_default(self, version: str) -> None:
        """Make the version the default and the folder's champion."""
        self.client.set_default(version)
        replace(self._record, champion=version).write(self.folder)

    def forget_champion(self) -> None:
        """Start without a champion from now on, as when it does not load any more."""
        with locked(self.folder):
            replace(self._record, champion=None).write(self.folder)

    def unregister(self, version: str) -> None:
        """Drop a version and its stored archive; its worker ends."""
        self.client.unregister(version)
        self._stored(version).unlink(missing_ok=True)

    def serves(self, archive: Archive) -> bool:
        """Tell whether the version is registered from an archive of the same content."""
        stored = self._stored(archive.version)
        return (
            archive.version in self.client.versions()
            and stored.exists()
            and sha256_of_file(stored) == archive.sha256
        )

    def keep_only_champion(self) -> None:
        """Make the champion the default and drop all others, each of which holds half a GB."""
        if self.champion is not None:
            self.client.set_default(self.champion)
        for version in reversed(self.client.versions()):  # the default can only go last
            if version != self.champion:
                self.unregister(version)
        for path in (self.folder / launch.STORE).glob("*.mar"):  # of runs that were cut off
            if self.champion is None or path != self._stored(self.champion):
                path.unlink()

    def stop(self, *, time_out: float = 20) -> None:
        """End server and workers: asked first, killed after `time_out` seconds.

        The record stays, so that a later start loads the champion again.
        """
        with locked(self.folder):
            self._end(time_out)

    def stop_if_idle(self) -> None:
        """End a server that has no champion, as after a first roll-out that failed."""
        with locked(self.folder):
            if self.champion is None:
                self._end()

    def _end(self, time_out: float = 20) -> None:
        record = self._record
        scratch = Path(record.scratch)
        launch.end_all(scratch, time_out=time_out)
        shutil.rmtree(scratch, ignore_errors=True)
        replace(record, pid=None).write(self.folder)

    def _stored(self, version: str) -> Path:
        return self.folder / launch.STORE / f"{self.client.name}-{version}.mar"
