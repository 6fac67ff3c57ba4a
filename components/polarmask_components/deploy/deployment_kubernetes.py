"""Put a model into service in a cluster and make it the champion, or leave everything as it was.

    store the archive -> try it on live requests, if asked for (`trial`)
    -> roll the Deployment to it -> ask it through the Service with a real image
    -> promote in the registry

Whatever fails, the roll-out returns to what was served before and proves that it answers. A run
that is killed in between leaves a note on the Deployment, and the next one returns to what stands
there. Who is champion is for the registry alone to say.
"""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from polarmask.errors import PolarMaskError
from polarmask_components.cluster.connection import connect
from polarmask_components.deploy.deployment import register
from polarmask_components.deploy.local_server import Deployment
from polarmask_components.deploy.serving_deployment import ServingDeployment
from polarmask_components.deploy.serving_state import (
    Object,
    ReturnPoint,
    ServedModel,
    progress_of,
    return_point,
    served_model,
)
from polarmask_components.deploy.trial import Trial, Tried, end_leftover
from polarmask_components.deploy.trial_settings import TrialSettings
from polarmask_components.errors import (
    ComponentError,
    ConflictError,
    RegistryError,
    RollOutError,
    StorageError,
)
from polarmask_components.registry.registry import Facts, Registry
from polarmask_components.signals import end_run, on_stop_signal
from polarmask_serving.errors import ServingError

_PATIENCE_FORWARD = 3.0
"""Seconds of wrong answers; clients get them, too."""
_PATIENCE_BACK = 60.0

_log = logging.getLogger(__name__)


def deploy_to_cluster(
    model: Path,
    *,
    facts: Facts,
    name: str,
    target: str,
    registry: Registry,
    expected: str | None,
    image: bytes,
    trial: TrialSettings | None = None,
    time_out: float = 1800,
) -> Deployment:
    """Serve a model folder in a cluster and promote it. Call it in the main thread.

    Args:
        model: Folder of the candidate.
        facts: For the registry.
        name: Of the model, in URLs.
        target: kubernetes://namespace/name of the Deployment and its Service.
        registry: Holds the champion; on S3, where pods can read.
        expected: Version of the champion that the candidate was compared with, or None.
        image: JPEG or PNG the candidate has to answer.
        trial: How to try it on live requests first; None: not at all.
        time_out: Seconds until all pods have to serve it, and again for the way back.

    Raises:
        RollOutError: The model does not come up, answers nonsense, or the run was asked to end.
        ConflictError: Another run promoted or rolled out meanwhile.
        ClusterError: The cluster can't be reached, or refuses.
        RegistryError, StorageError: The registry can't be used.
        ServingError: The model can't be packed.

    Once the cluster was changed, the message also says what answers now.
    """
    if not registry.where.startswith("s3://"):
        raise RegistryError(
            f"pods of a cluster can't read {registry.where}; give deploy_registry=s3://bucket/prefix"
        )
    api = connect()
    serving = ServingDeployment.from_uri(api, target)
    before, url = serving.read(), serving.url(name)
    if before["spec"].get("paused"):
        raise RollOutError(f"{target} can't be rolled out: {progress_of(before, before).words}")
    back = return_point(before, registry.champion_version())
    if trial is None:
        end_leftover(api, serving)
        first = None
    else:
        first = Trial(api, serving, trial)
        first.check()
    record = register(model, facts, name=name, registry=registry)
    version = record.version
    new = ServedModel(
        version=version, uri=registry.archive_uri(record), sha256=record.archive_sha256
    )
    tried = _try_first(first, new, back, name, image, time_out)
    rolling = _RollOut(serving, registry, name, url, image, time_out, before, back, new)
    answer = rolling.run(expected)
    words = None if tried is None else asdict(tried.figures) | {"reason": tried.reason}
    return Deployment(version, url, answer, words)


def _try_first(
    trial: Trial | None,
    new: ServedModel,
    back: ReturnPoint,
    name: str,
    image: bytes,
    time_out: float,
) -> Tried | None:
    if trial is None:
        return None
    if back.idle:
        _log.info("no trial: nothing serves yet, so there are no requests to try it on")
        return None
    try:
        return trial.run(new, name, image, time_out=time_out)
    except BaseException as error:
        _raise_with(error, f"version {back.model.version} serves as before; nothing was rolled out")


@dataclass(frozen=True)
class _RollOut:
    """One try to replace one model by another."""

    serving: ServingDeployment
    registry: Registry
    name: str
    url: str
    image: bytes
    time_out: float
    before: Object
    back: ReturnPoint
    new: ServedModel

    def run(self, expected: str | None) -> dict[str, Any]:
        """Return what the new model said, once it is the champion."""
        try:
            with on_stop_signal(end_run):
                answer = self._go_forward()
                self.registry.promote(self.new.version, expected=expected)
        except BaseException as error:
            with on_stop_signal(lambda *_: _log.warning("busy putting back the old version")):
                outcome = self._go_back()
            _raise_with(error, outcome)
        self._note_decision()
        return answer

    def _go_forward(self) -> dict[str, Any]:
        replicas = 1 if self.before["spec"].get("replicas") == 0 else None
        self.serving.change(self.before, self.new, back=self.back, replicas=replicas)
        self.serving.wait(self.new, before=self.before, time_out=self.time_out)
        answer = self._ask(self.new.version, patience=_PATIENCE_FORWARD)
        self.serving.check_serves(self.new)
        return answer

    def _ask(self, version: str, *, patience: float) -> dict[str, Any]:
        return self.serving.ask(self.url, self.image, model=(self.name, version), patience=patience)

    def _go_back(self) -> str:
        """Undo what was done, however far it came; say in words what answers now."""
        champion = self._champion()
        if champion == self.new.version:
            self._note_decision()
            return f"{champion} is the champion and stays in service"
        try:
            now = self.serving.read()
            if served_model(now) != self.new:
                served = served_model(now).version or "none"
                return f"{self.serving.where} has version {served}, which is for others to judge"
            return self._return_to(now, champion)
        except (ComponentError, ServingError) as error:
            return f"going back failed, too: {error}. {self._who_answers()}"

    def _champion(self) -> str | None:
        """Return the champion; a registry that can't be read must not keep us from going back."""
        try:
            return self.registry.champion_version()
        except (RegistryError, StorageError) as error:
            _log.warning("%s", error)
            return None

    def _return_to(self, now: Object, champion: str | None) -> str:
        # By the champion of now: another run may have been promoted meanwhile.
        back = return_point(self.before, champion)
        self.serving.change(now, back.model, back=None, replicas=0 if back.idle else None)
        self.serving.wait(back.model, before=now, time_out=self.time_out)
        if back.idle:
            return "no pod served before, and none does now"
        self._ask(back.model.version, patience=_PATIENCE_BACK)
        return f"version {back.model.version} answers again at {self.url}"

    def _who_answers(self) -> str:
        try:
            version = self.serving.ask_once(self.url, self.image)["model"]["version"]
        except (ServingError, KeyError, TypeError) as error:
            return f"{self.url} does not answer: {error}"
        return f"At {self.url} version {version} answers"

    def _note_decision(self) -> None:
        """Take the note from the Deployment; one that stays is understood by the next run."""
        try:
            self.serving.change(self.serving.check_serves(self.new), self.new, back=None)
        except ComponentError as error:
            _log.warning("the roll-out is decided, but its note stays: %s", error)


def _raise_with(error: BaseException, outcome: str) -> NoReturn:
    """Raise an error again, with what answers now."""
    words = f"{str(error).rstrip()} -- {outcome}"
    if isinstance(error, ConflictError):
        raise ConflictError(words) from error
    if isinstance(error, ComponentError | ServingError | PolarMaskError | SystemExit):
        raise RollOutError(words) from error
    error.add_note(outcome)
    raise error
