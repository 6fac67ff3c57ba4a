"""This machine as a place to serve: a pod in a folder, at one port over all versions.

    pod.json            the pod that serves, and a second one while it is replaced
    pods/VERSION/       its archive and logs

A new version starts beside the old one, then takes its port, then the old one ends. The registry
decides which version has to serve: the next call after a killed run serves the registry's champion.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from polarmask.system.files import write_text
from polarmask.system.formats import JsonFormat
from polarmask_components.deploy.ask_server import ask, check_answer
from polarmask_components.deploy.target import Deployment, Proof, ServedModel
from polarmask_components.errors import ComponentError, RollOutError
from polarmask_components.registry.registry import Registry
from polarmask_components.storage.objects import fetch_file
from polarmask_serving.archive.read import Archive, read_archive
from polarmask_serving.errors import PortTakenError, ServerError, ServingError
from polarmask_serving.local_pod import LocalPod

_RECORD = "pod.json"
_OLD_RECORD = "server.json"
"""Of releases that served without a proxy."""
_FORMAT = JsonFormat(1, ServerError, "end its TorchServe and Envoy, if they run, and remove it")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _State:
    """Content of pod.json."""

    serving: LocalPod | None = None
    other: LocalPod | None = None
    """Starting or ending; left by a killed run if nobody holds the lock."""


class LocalTarget:
    """The pod of a folder; hold the folder's lock while using it."""

    def __init__(self, folder: Path, *, name: str) -> None:
        self._folder = folder.resolve()
        self._name = name
        self._model = ServedModel()
        self._proven: LocalPod | None = None

    @property
    def url(self) -> str:
        """Where the model answers."""
        serving = self._read().serving
        return "" if serving is None else serving.url

    @property
    def serving(self) -> LocalPod | None:
        """The pod that answers, if there is one."""
        serving = self._read().serving
        # Health is up to a second old: the process may have ended since.
        if serving is not None and serving.is_running() and serving.is_ready():
            return serving
        return None

    def prepare(self, registry: Registry) -> None:
        """Serve the registry's champion, so that it answers until the new version does."""
        self.follow(registry)

    def follow(self, registry: Registry) -> None:
        """End what a killed run left, and serve the registry's champion if that can be served.

        Raises:
            ServerError: The pod of this folder serves a model of another name.
        """
        self.check_name()
        self._end_other()
        self._tidy()
        champion = registry.champion_version()
        serving = self.serving
        if champion is None or (serving is not None and serving.version == champion):
            return
        try:
            model = ServedModel.of(registry.record(champion), registry)
            self._replace_by(self._start(model))
        except (ComponentError, ServingError, OSError) as error:
            # A damaged champion must not block a new model; the pod that runs stays in service.
            _log.warning("the registry's champion can't be served: %s", error)
            self._clean_up()

    def check_name(self) -> None:
        """Raise ServerError if the pod that answers serves a model of another name."""
        serving = self.serving
        if serving is not None and serving.name != self._name:
            raise ServerError(f"{self._folder} serves {serving.name}, not {self._name}")

    def prove(self, model: ServedModel, image: bytes) -> Proof:
        """Start the new version beside the old one and send it an image."""
        self._model, self._proven = model, None
        new = self.serving
        if new is None or new.version != model.version:  # else: repeated after its success
            new = self._start(model)
        answer = ask(new.url, image)
        check_answer(answer, self._name, model.version)
        self._proven = new
        return Proof(answer)

    def _start(self, model: ServedModel) -> LocalPod:
        archive = self._fetch(model)
        port, serving = None, self._read().serving
        if serving is not None and not serving.is_running():
            serving.stop()
            port = serving.port
        try:
            return self._launch(archive, port)
        except PortTakenError:  # another program was faster; any other port will do
            return self._launch(archive, None)

    def _fetch(self, model: ServedModel) -> Archive:
        path = self._folder / "pods" / model.version / "model.mar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a registry of this disk needs no second copy
            os.link(model.uri, path)
        fetch_file(model.uri, path, sha256=model.sha256)
        return read_archive(path)

    def _launch(self, archive: Archive, port: int | None) -> LocalPod:
        new = LocalPod.prepare(archive, archive.path.parent, port=port)
        self._write(_State(self._read().serving, new))  # first, so that no pod can be lost
        new.launch(archive)
        return new

    def take_over(self) -> None:
        """Give the new pod the port of the old one, and end the old one.

        Raises:
            RollOutError: The old one still answers.
        """
        if self._proven is None:
            return
        try:
            self._replace_by(self._proven)
        except (ServingError, OSError) as error:
            self._clean_up()
            raise RollOutError(
                f"{self._model.version} is the champion, but could not take over: {error}; run "
                f"again, or `polarmask models rollback {self._model.version}`, to serve it"
            ) from error

    def _replace_by(self, new: LocalPod) -> None:
        old = self._read().serving
        if new == old:
            return
        if old is not None and old.is_running():
            new = _move(new, old)
        self._write(_State(new, old))
        self._clean_up()
        self._tidy()

    def go_back(self, champion: str | None) -> str:
        """End the new pod; the old one was never touched."""
        is_champion = champion == self._model.version
        if is_champion and self._proven is not None:  # promoted, and the answer was lost
            try:
                self.take_over()
            except RollOutError as error:
                return str(error)
            return f"{champion} is the champion and stays in service"
        self._clean_up()
        serving = self.serving
        if is_champion:
            return self._champion_fails(serving)
        if serving is None:
            return "no version served before, and none does now"
        return f"version {serving.version} answers again at {serving.url}"

    def _champion_fails(self, serving: LocalPod | None) -> str:
        champion = self._model.version
        if serving is None:
            return f"{champion} is the champion, but does not come up; no version answers"
        if serving.version == champion:
            return f"{champion} is the champion and stays in service"
        return (
            f"{champion} is the champion, but does not come up; version {serving.version} answers "
            f"at {serving.url}"
        )

    def stop(self) -> None:
        """End all pods; a later call starts the champion again, at the same port."""
        self._end_other()
        serving = self._read().serving
        if serving is not None:
            serving.stop()

    def _end_other(self) -> None:
        state = self._read()
        if state.other is not None:
            state.other.stop()
            self._write(_State(state.serving))

    def _clean_up(self) -> None:
        """End the other pod, or leave that to the next call: it must not hide what happened."""
        try:
            self._end_other()
        except (ServingError, OSError) as error:
            _log.warning("a pod that does not serve any more is left: %s", error)

    def _tidy(self) -> None:
        """Remove archives and logs of versions that don't serve."""
        serving = self._read().serving
        for folder in (self._folder / "pods").glob("*"):
            if serving is None or folder.name != serving.version:
                shutil.rmtree(folder, ignore_errors=True)

    def _read(self) -> _State:
        path = self._folder / _RECORD
        if not path.exists():
            self._refuse_old_server()
            return _State()
        content = _FORMAT.load(path.read_text(encoding="utf-8"), where=path)
        try:
            return _State(**{role: each and LocalPod(**each) for role, each in content.items()})
        except TypeError as error:
            raise _FORMAT.damaged(path, error) from error

    def _refuse_old_server(self) -> None:
        path = self._folder / _OLD_RECORD
        if path.exists():
            raise ServerError(
                f"{path} was left by the server of an earlier release; end its TorchServe (`kill` "
                f"with the pid in that file), if it runs, and remove {self._folder}"
            )

    def _write(self, state: _State) -> None:
        write_text(self._folder / _RECORD, _FORMAT.dump(asdict(state)))


def _move(new: LocalPod, old: LocalPod) -> LocalPod:
    """Give a pod the port of another one, which ends answering."""
    try:
        return new.move(old.port)
    except PortTakenError:  # two proxies can listen at one port on Linux alone
        old.close()
        try:
            return new.move(old.port)
        except ServerError:
            old.open()
            raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone, among threads and processes; the lock ends with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ask_champion(target: Path, *, name: str, registry: Registry, image: bytes) -> Deployment | None:
    """Return the answer of this machine's champion to an image; its pod is started if need be.

    Args:
        target: Folder of the pod.
        name: Of the model, in URLs.
        registry: Holds the version of the champion.
        image: JPEG or PNG.

    Returns:
        None if nothing was deployed yet.

    Raises:
        ServingError: The pod does not start or does not answer.
        ComponentError: The registry can't be used.
    """
    champion = registry.champion_version()
    if champion is None:
        return None
    with locked(target):
        local = LocalTarget(target, name=name)
        local.follow(registry)
        local.check_name()  # a pod that has just been started for the champion, too
        serving = local.serving
    if serving is None:
        raise ServerError(f"champion {champion} of {registry.where} can't be served; see the log")
    return Deployment(serving.version, serving.url, ask(serving.url, image))


def is_serving(target: Path) -> bool:
    """Return whether a pod runs in a folder."""
    serving = LocalTarget(target, name="")._read().serving
    return serving is not None and serving.is_running()


def stop_server(target: Path) -> None:
    """End the pod of a folder, if there is one; waits for a deployment that is running there."""
    if LocalTarget(target, name="")._read() != _State():
        with locked(target):
            LocalTarget(target, name="").stop()
