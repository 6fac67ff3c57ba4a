"""A cluster as a place to serve: a Deployment, its Service, and the roll-out between two models.

    try it on live requests, if asked for (`trial`) -> roll the Deployment to it
    -> ask it through the Service with a real image

A run that is killed in between leaves a note on the Deployment; the next one returns to the model
that is named there.
"""

import logging
from dataclasses import asdict
from typing import Any

from polarmask_components.cluster.connection import connect
from polarmask_components.deploy.cluster_deployment import ClusterDeployment
from polarmask_components.deploy.cluster_state import (
    Object,
    ReturnPoint,
    progress_of,
    return_point,
    served_model,
)
from polarmask_components.deploy.target import Proof, ServedModel
from polarmask_components.deploy.trial.run import Trial, end_leftover
from polarmask_components.deploy.trial.settings import TrialSettings
from polarmask_components.errors import ComponentError, RegistryError, RollOutError
from polarmask_components.registry.registry import Registry
from polarmask_serving.errors import ServingError

_FORWARD_SECONDS = 3.0
"""Of wrong answers that are accepted after a roll-out; clients get them, too."""
_BACK_SECONDS = 60.0
_TIME_OUT = 1800.0
"""Seconds until all pods have to serve a model, and again for the way back."""

_log = logging.getLogger(__name__)


class ClusterTarget:
    """One roll-out of a Deployment. Use it in the main thread.

    Args:
        uri: kubernetes://namespace/name of the Deployment and its Service.
        name: Of the model, in URLs.
        trial: How to try a new version on live requests first; None: not at all.

    Raises:
        RollOutError: The URI names no Deployment, or it can't be found.
        ClusterError: The cluster can't be reached, or refuses.
    """

    def __init__(self, uri: str, *, name: str, trial: TrialSettings | None = None) -> None:
        api = connect()
        self._deployment = ClusterDeployment.from_uri(api, uri)
        self._name = name
        self._trial = None if trial is None else Trial(api, self._deployment, trial)
        self._api = api
        self.url = self._deployment.url(name)
        self._is_changed = False

    def prepare(self, registry: Registry) -> None:
        """Read what is served now; end the trial that a killed run left."""
        if not registry.where.startswith("s3://"):
            raise RegistryError(
                f"pods of a cluster can't read {registry.where}; give "
                "deploy_registry=s3://bucket/prefix"
            )
        self._before = before = self._deployment.read()
        if before["spec"].get("paused"):
            progress = progress_of(before, before)
            raise RollOutError(f"{self._deployment.where} can't be rolled out: {progress.message}")
        self._back = return_point(before, registry.champion_version())
        if self._trial is None:
            end_leftover(self._api, self._deployment)
        else:
            self._trial.check()

    def prove(self, model: ServedModel, image: bytes) -> Proof:
        """Try the model, if asked for; roll the Deployment to it; ask it through the Service."""
        self._model, self._image = model, image
        trial = self._try_first()
        self._is_changed = True
        replicas = 1 if self._before["spec"].get("replicas") == 0 else None
        self._deployment.change(self._before, self._model, back=self._back, replicas=replicas)
        self._deployment.wait(self._model, before=self._before, time_out=_TIME_OUT)
        answer = self._ask(self._model.version, deadline_seconds=_FORWARD_SECONDS)
        self._deployment.check_serves(self._model)
        return Proof(answer, trial)

    def _try_first(self) -> dict[str, Any] | None:
        if self._trial is None:
            return None
        if self._back.idle:
            _log.info("no trial: nothing serves yet, so there are no requests to try it on")
            return None
        tried = self._trial.run(self._model, self._name, self._image, time_out=_TIME_OUT)
        return asdict(tried.figures) | {"reason": tried.reason}

    def take_over(self) -> None:
        """Remove the note from the Deployment; the next run understands one that stays."""
        try:
            now = self._deployment.check_serves(self._model)
            self._deployment.change(now, self._model, back=None)
        except ComponentError as error:
            _log.warning("the roll-out is decided, but its note stays: %s", error)

    def go_back(self, champion: str | None) -> str:
        """Roll back to what was served before, and prove that it answers."""
        if not self._is_changed:
            return f"{self._as_before()}; nothing was rolled out"
        try:
            now = self._deployment.read()
            served = served_model(now)
            if served == served_model(self._before) != self._model:
                return self._as_before()  # the change was refused
            if served != self._model:
                version = served.version or "none"
                return f"another run put version {version} into {self._deployment.where}"
            if champion == served.version:  # promoted, and the answer was lost
                self.take_over()
                return f"{champion} is the champion and stays in service"
            # By the champion of now: another run may have been promoted meanwhile.
            return self._return_to(return_point(self._before, champion), now)
        except (ComponentError, ServingError) as error:
            return f"going back failed, too: {error}. {self._who_answers()}"

    def _as_before(self) -> str:
        version = served_model(self._before).version
        if not version or self._before["spec"].get("replicas") == 0:
            return "no pod serves, as before"
        return f"version {version} serves as before"

    def _return_to(self, back: ReturnPoint, now: Object) -> str:
        replicas = 0 if back.idle else None
        self._deployment.change(now, back.model, back=None, replicas=replicas)
        self._deployment.wait(back.model, before=now, time_out=_TIME_OUT)
        if back.idle:
            return "no pod served before, and none does now"
        self._ask(back.model.version, deadline_seconds=_BACK_SECONDS)
        return f"version {back.model.version} answers again at {self.url}"

    def _who_answers(self) -> str:
        try:
            version = self._deployment.ask_once(self.url, self._image)["model"]["version"]
        except (ServingError, KeyError, TypeError) as error:
            return f"{self.url} does not answer: {error}"
        return f"At {self.url} version {version} answers"

    def _ask(self, version: str, *, deadline_seconds: float) -> dict[str, Any]:
        return self._deployment.ask(
            self.url, self._image, model=(self._name, version), deadline_seconds=deadline_seconds
        )
