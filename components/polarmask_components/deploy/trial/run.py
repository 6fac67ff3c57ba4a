"""Try a new model in a cluster on live requests, before any pod of the server changes.

    candidate scaled to one pod and sent an image -> share set in the ConfigMap -> logs of both
    compared for some minutes -> share 0 -> candidate scaled to none -> verdict

Whatever happens, share and candidate go back to 0. What a killed run left is ended by the next one.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask.evaluation.gate import Verdict
from polarmask_components.cluster.connection import call_api, refusal_of
from polarmask_components.deploy.cluster_deployment import ClusterDeployment
from polarmask_components.deploy.cluster_state import Object, served_model
from polarmask_components.deploy.target import ServedModel
from polarmask_components.deploy.trial.figures import Figures, Requests, decide_trial, figures_of
from polarmask_components.deploy.trial.settings import TrialSettings
from polarmask_components.errors import (
    ClusterError,
    ComponentError,
    ConflictError,
    RollOutError,
)
from polarmask_components.signals import end_run, on_stop_signal
from polarmask_serving.proxy.trial import entries

_POLL_SECONDS = 10.0
_REACH_SECONDS = 180.0
"""A kubelet brings an entry of a ConfigMap to the pods within two minutes."""
_SERVICE_SECONDS = 60.0
"""Seconds until the candidate's Service knows its pod."""
_CONTAINER = "torchserve"
_ADMIN = "apply k8s/components/trial"

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Tried:
    """How a trial ended."""

    figures: Figures
    reason: str


@dataclass
class Trial:
    """One trial of a model beside the Deployment that serves.

    Attributes:
        stable: What serves.
        candidate: The Deployment `NAME-candidate`.
        settings: How to try.
    """

    api: ApiClient
    stable: ClusterDeployment
    settings: TrialSettings
    candidate: ClusterDeployment = field(init=False)
    _old: Requests = field(default_factory=Requests)
    _new: Requests = field(default_factory=Requests)

    def __post_init__(self) -> None:
        """Derive the candidate's Deployment from the stable one."""
        self.candidate = candidate_of(self.stable, self.api)

    def check(self) -> None:
        """Check that all parts exist, and undo what a killed run left.

        Raises:
            RollOutError: A part of k8s/components/trial is missing.
            ClusterError: It may not be read.
        """
        self.candidate.read()
        self.candidate.url("")
        _traffic(self.api, self.stable)
        end_trial(self.api, self.stable)

    def run(self, model: ServedModel, name: str, image: bytes, *, time_out: float) -> Tried:
        """Try a model; return if it may take over. Call it in the main thread.

        Args:
            model: The model.
            name: Of the model, in URLs.
            image: JPEG or PNG that it has to answer first.
            time_out: Seconds until the candidate has to be ready.

        Raises:
            RollOutError: It may not, does not come up, or a signal stopped the run.
            ConflictError: Another run tries a model there.
            ServerError: It answers nonsense.
            ClusterError: The cluster can't be reached, or refuses.
        """
        try:
            with on_stop_signal(end_run):
                before = self.candidate.read()
                self.candidate.change(before, model, back=None, replicas=1)
                self.candidate.wait(model, before=before, time_out=time_out)
                url, asked = self.candidate.url(name), (name, model.version)
                self.candidate.ask(url, image, model=asked, deadline_seconds=_SERVICE_SECONDS)
                verdict, figures = self._watch(model)
        except ConflictError:
            raise  # what runs there is another run's
        except BaseException:  # a signal, too, ends the trial
            self._end()
            raise
        self._end()
        if not verdict.passed:
            raise RollOutError(f"the trial of version {model.version} failed: {verdict.reason}")
        return Tried(figures, verdict.reason)

    def _end(self) -> None:
        with on_stop_signal(lambda *_: _log.warning("busy ending the trial")):
            end_trial(self.api, self.stable)

    def _watch(self, model: ServedModel) -> tuple[Verdict, Figures]:
        """Compare what both versions log until the trial is over or has failed."""
        settings = self.settings
        self._read_logs(since=600)
        self._old.forget(list(self._old.by_id))
        self._new.forget(list(self._new.by_id))
        set_traffic(self.api, self.stable, copies=settings.copies, share=settings.share)
        clock = _Clock(60 * settings.minutes)
        due: set[str] = set()
        while True:
            time.sleep(_POLL_SECONDS)
            self.candidate.check_serves(model)
            due |= set(self._old.by_id)  # the candidate had a poll's time to log these
            self._read_logs(since=int(3 * _POLL_SECONDS) + 5)
            figures = figures_of(
                *(self._old.by_id, self._new.by_id), due=due, copies=settings.copies > 0
            )
            over = clock.is_over(reached=bool(figures.compared or figures.unanswered))
            verdict = decide_trial(figures, settings, over=over)
            _log.info("trial of version %s: %s", model.version, verdict.reason)
            if over or not verdict.passed:
                return verdict, figures

    def _read_logs(self, *, since: int) -> None:
        # The stable version first: an answer of the candidate that came meanwhile is welcome.
        for serving, requests in ((self.stable, self._old), (self.candidate, self._new)):
            for pod in serving.pods(serving.read()):
                requests.read(self._log_of(serving, pod["metadata"]["name"], since))

    def _log_of(self, serving: ClusterDeployment, pod: str, since: int) -> list[str]:
        with suppress(ApiException):  # it came or went a moment ago
            text: str = call_api(
                CoreV1Api(self.api).read_namespaced_pod_log,
                *(pod, serving.namespace),
                container=_CONTAINER,
                since_seconds=since,
            )
            return text.splitlines()
        return []


class _Clock:
    """Runs from the first request that reaches the candidate, or ends if none does."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + max(_REACH_SECONDS, seconds)
        self._started = False

    def is_over(self, *, reached: bool) -> bool:
        """Return whether time is up, given whether a request has reached the candidate."""
        now = time.monotonic()
        if reached and not self._started:
            self._started, self._deadline = True, now + self._seconds
        return now >= self._deadline


def candidate_of(stable: ClusterDeployment, api: ApiClient) -> ClusterDeployment:
    """Return the Deployment beside another one in which new models are tried."""
    return ClusterDeployment(api, stable.namespace, f"{stable.name}-candidate")


def end_trial(api: ApiClient, stable: ClusterDeployment) -> None:
    """Send nothing to the candidate any more and end its pods, if there is one.

    Raises:
        ComponentError: It can't be done; the message says how to do it by hand.
    """
    candidate, name = candidate_of(stable, api), f"{stable.name}-traffic"
    try:
        sent = _traffic(api, stable).get("data") or {}
        if sent and sent != entries(copies=0, share=0):
            set_traffic(api, stable, copies=0, share=0)
        now = candidate.read()
        if now["spec"].get("replicas"):
            candidate.change(now, served_model(now), back=None, replicas=0)
    except ComponentError as error:
        raise type(error)(
            f"{error}; end the trial by hand: kubectl -n {stable.namespace} scale deploy "
            f"{candidate.name} --replicas 0, and set the entries of ConfigMap {name} to 0"
        ) from error


def end_leftover(api: ApiClient, stable: ClusterDeployment) -> None:
    """End the trial that a killed run left, where there may be one."""
    try:
        end_trial(api, stable)
    except (ClusterError, RollOutError) as error:
        _log.debug("no trial to end: %s", error)


def set_traffic(api: ApiClient, stable: ClusterDeployment, *, copies: float, share: float) -> None:
    """Write what the server's proxies send to the candidate, as shares of all requests."""
    body = {"data": entries(copies=copies, share=share)}
    name = f"{stable.name}-traffic"
    _call(stable, CoreV1Api(api).patch_namespaced_config_map, name, stable.namespace, body)


def _traffic(api: ApiClient, stable: ClusterDeployment) -> Object:
    name = f"{stable.name}-traffic"
    read = CoreV1Api(api).read_namespaced_config_map
    found: Object = api.sanitize_for_serialization(_call(stable, read, name, stable.namespace))
    return found


def _call(stable: ClusterDeployment, call: Callable[..., Answer], *arguments: Any) -> Answer:  # noqa: ANN401  # whatever the call takes
    try:
        return call_api(call, *arguments)
    except ApiException as error:
        raise RollOutError(f"{stable.where}: {refusal_of(error)}; {_ADMIN}") from error
