"""A serving pod on this machine: the programs of a pod on a cluster, at ports of 127.0.0.1.

    pod = LocalPod.start(archive, Path("runs/server/1"))
    requests.post(pod.url, data=image)
    pod.stop()

Its processes outlive the one that started them, which need not be the one that stops them: they
are found by the scratch folder in their command lines.
"""

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import psutil

from polarmask_serving.archive.read import Archive
from polarmask_serving.errors import PortTakenError, ServerError
from polarmask_serving.proxy.drain import drain_proxy
from polarmask_serving.torchserve.launch import LONGEST_SCRATCH, free_ports
from polarmask_serving.torchserve.probe import Target
from polarmask_serving.torchserve.server_log import last_worker_error, start_error

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.1
_START_SECONDS = 210.0
"""A minute for TorchServe, the rest for the model: on a slow machine both take long."""
_PROGRAMS = ("java", "python", "envoy")

# Kept so that the programs that this process started are reaped when they end.
_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, kw_only=True)
class LocalPod:
    """One version of a model, served by TorchServe and Envoy."""

    name: str
    """Of the model, in URLs."""
    version: str
    folder: str
    """Holds the logs."""
    scratch: str
    """Folder of the two programs, with a short path."""
    port: int
    """Of predictions."""
    operations_port: int
    """Of health and metrics."""

    @classmethod
    def start(
        cls,
        archive: Archive,
        folder: Path,
        *,
        port: int | None = None,
        time_out: float = _START_SECONDS,
    ) -> Self:
        """Start a pod; return once its model answers.

        Args:
            archive: What to serve; has to stay where it is.
            folder: For the logs; made if absent.
            port: Of predictions; None takes a free one.
            time_out: Seconds until the model has to answer.

        Raises:
            PortTakenError: Another program listens at the port.
            ServerError: The model does not come up. Nothing is left but the logs.
        """
        pod = cls.prepare(archive, folder, port=port)
        try:
            pod.launch(archive, time_out=time_out)
        except PortTakenError:
            if port is not None:
                raise
            # Another program took a free port between our choice and the start.
            pod = cls.prepare(archive, folder)
            pod.launch(archive, time_out=time_out)
        return pod

    @classmethod
    def prepare(cls, archive: Archive, folder: Path, *, port: int | None = None) -> Self:
        """Choose ports and make the scratch folder of a pod that is still to be launched."""
        if port is not None:
            check_port(port)
        free, operations_port = free_ports(2)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(
            name=archive.name,
            version=archive.version,
            folder=str(folder.resolve()),
            scratch=str(_make_scratch()),
            port=port or free,
            operations_port=operations_port,
        )

    def launch(
        self, archive: Archive, *, time_out: float = _START_SECONDS, alone: bool = False
    ) -> None:
        """Start the programs and wait; see `start` and, for `alone`, `open`."""
        module = "polarmask_serving.torchserve.pod"
        command = [module, f"--archive={archive.path.resolve()}", f"--scratch={self.scratch}"]
        try:
            self.open(_spawn(command, self.log), time_out=time_out, alone=alone)
        except BaseException:  # Ctrl-C, too, must leave no program behind
            self.stop(drain_seconds=0)
            raise

    def restart(self, archive: Archive) -> None:
        """Start a pod that was launched `alone` again, at its port."""
        _end(self.scratch, time_out=20)
        self.launch(archive, alone=True)

    def open(
        self,
        server: subprocess.Popen[bytes] | None = None,
        *,
        time_out: float = 30,
        alone: bool = False,
    ) -> None:
        """Start the proxy at the pod's port; return once the model answers there.

        Args:
            server: TorchServe, if it has just been started.
            time_out: Seconds.
            alone: No other proxy may ever listen at the port, as `move` would need it.

        Raises:
            PortTakenError: Another program listens at the port.
            ServerError: The model does not come up.
        """
        self._proxy_folder.mkdir(exist_ok=True)
        command = [
            "polarmask_serving.proxy.main",
            f"--server={self.scratch}",
            f"--scratch={self._proxy_folder}",
            f"--port={self.port}",
            f"--operations-port={self.operations_port}",
            *([] if alone else ["--share-port"]),
        ]
        log = Path(self.folder) / f"proxy-{self.port:05}.log"
        proxy, deadline = _spawn(command, log), time.monotonic() + time_out
        while not self.is_ready():
            if server is not None:
                self._check_server(server)
            _check_proxy(proxy, self.port, log)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"version {self.version} did not come up: no answer after {time_out:.0f} s; "
                    f"see {self.log}"
                )
            time.sleep(_POLL_SECONDS)

    def move(self, port: int) -> Self:
        """Start another proxy of this pod at a port, and end the one it has.

        Another pod's proxy may still listen there.

        Raises:
            ServerError: The port can't be had; the pod is as it was.
        """
        moved = replace(self, port=port, operations_port=free_ports(1)[0])
        try:
            moved.open()
        except BaseException:  # Ctrl-C, too, must leave no program behind
            moved.close(drain_seconds=0)
            raise
        self.close()
        return moved

    @property
    def url(self) -> str:
        """Where the model answers."""
        return f"http://{_HOST}:{self.port}/predictions/{self.name}"

    @property
    def page(self) -> str:
        """Where a browser can try the model."""
        return f"http://{_HOST}:{self.port}/demo"

    @property
    def log(self) -> Path:
        """What TorchServe and its worker wrote."""
        return Path(self.folder) / "server.log"

    @property
    def _proxy_folder(self) -> Path:
        return Path(self.scratch) / f"proxy-{self.port:05}"

    def is_running(self) -> bool:
        """Return whether its server's process is there; it may still not answer."""
        return bool(_processes(self.scratch, programs=("java",)))

    def is_ready(self) -> bool:
        """Return what a cluster asks a pod: does a worker have this version loaded?"""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"http://{_HOST}:{self.operations_port}/healthz", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def is_alive(self) -> bool:
        """Return what a cluster asks a pod before it restarts a container."""
        try:
            server = Target.read(Path(self.scratch))
        except (OSError, ValueError, TypeError):
            return False
        return server.is_alive() and _listens(self.operations_port)

    def close(self, *, drain_seconds: float = 10) -> None:
        """End the proxy, after it has answered the requests that it has."""
        with suppress(OSError, ValueError):  # it has ended already
            if drain_seconds:
                drain_proxy(self._proxy_folder, forget_seconds=0, time_out=drain_seconds)
        _end(str(self._proxy_folder), time_out=10)

    def stop(self, *, drain_seconds: float = 10) -> None:
        """End the pod; stopping twice is stopping.

        Raises:
            ServerError: A process does not end.
        """
        self.close(drain_seconds=drain_seconds)
        _end(self.scratch, time_out=20)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _check_server(self, server: subprocess.Popen[bytes]) -> None:
        """Raise ServerError if the model will not answer."""
        if server.poll() is not None:
            problem = start_error(self.log)
            if "Failed to bind" in problem:
                raise PortTakenError(f"TorchServe does not start: {problem}; see {self.log}")
        else:
            with self.log.open("rb") as lines:
                problem = last_worker_error(lines)
        if problem:
            raise ServerError(f"version {self.version} did not come up: {problem}; see {self.log}")


def _check_proxy(proxy: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Raise ServerError if the proxy has ended."""
    if proxy.poll() is None:
        return
    text = log.read_text(encoding="utf-8", errors="replace")
    if "Address already in use" in text or "cannot bind" in text:
        raise _port_taken(port)
    raise ServerError(f"the proxy does not start; see {log}:\n{text[-1000:]}")


def check_port(port: int) -> None:
    """Check that a pod may listen at a port of this machine.

    Raises:
        PortTakenError: Another program listens there.
        ServerError: The system does not allow it.
    """
    if _listens(port):
        raise _port_taken(port)
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # nobody listens any more: free
        try:
            trial.bind((_HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_taken(port) from error
            raise ServerError(f"port {port} can't be used: {error.strerror}") from error


def _port_taken(port: int) -> PortTakenError:
    return PortTakenError(f"port {port} is taken; choose another one")


def _make_scratch() -> Path:
    parent = tempfile.gettempdir()
    short = len(os.fsencode(parent)) < LONGEST_SCRATCH - len("/polarmask-12345678")
    return Path(tempfile.mkdtemp(prefix="polarmask-", dir=parent if short else "/tmp"))  # noqa: S108 the one short folder every Unix has


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program of a pod in its own session."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | {"POD_IP": _HOST, "WORKERS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # outlives the pipeline step and its terminal's Ctrl-C
        )
    _children.append(process)
    return process


def _listens(port: int) -> bool:
    try:
        socket.create_connection((_HOST, port), timeout=2).close()
    except OSError:
        return False
    return True


def _processes(marker: str, *, programs: tuple[str, ...] = _PROGRAMS) -> list[psutil.Process]:
    """Return the processes of these programs with this text in their command lines."""
    found = []
    for process in psutil.process_iter():
        try:
            name = process.name().lower()  # "Python" on macOS
            if name.startswith(programs) and any(marker in each for each in process.cmdline()):
                found.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return found


def _end(marker: str, *, time_out: float) -> None:
    """End processes: SIGTERM first, SIGKILL after a while."""
    found = _processes(marker)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs(found, timeout=time_out)
    left = _processes(marker)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _, alive = psutil.wait_procs(left, timeout=5)
    _children[:] = [each for each in _children if each.poll() is None]
    if alive:
        raise ServerError(f"processes {[p.pid for p in alive]} don't end; kill them")
