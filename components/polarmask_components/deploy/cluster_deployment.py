"""A Deployment of TorchServe in a cluster: read it, change its model, wait, ask its Service."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from kubernetes.client import ApiClient, AppsV1Api, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.address import CLUSTER, split_target
from polarmask_components.cluster.connection import call_api, refusal_of
from polarmask_components.deploy.ask_server import Tls, ask, check_answer
from polarmask_components.deploy.cluster_state import (
    Object,
    ReturnPoint,
    Trouble,
    patch_to,
    roll_out_of,
    served_model,
    undecided,
)
from polarmask_components.deploy.target import ServedModel
from polarmask_components.errors import ClusterError, ConflictError, RollOutError
from polarmask_serving.errors import ServerError
from polarmask_serving.torchserve.server_log import last_worker_error

_POLL_SECONDS = 1.0
_SURE = 5
"""Right answers in a row, each over a connection of its own, until all pods seem to give them."""
_SECONDS_PER_ANSWER = 30.0
_LOG_LINES = 200
_SHOWN_LINES = 5
_SECONDS_FOR_LOGS = 10.0

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class ClusterDeployment:
    """A Deployment and the Service of its name.

    Attributes:
        where: For messages, `kubernetes://namespace/name`.
        namespace: Of both.
        name: Of both.
    """

    def __init__(
        self, api: ApiClient, namespace: str, name: str, *, tls: Tls | None = None
    ) -> None:
        self._api = api
        self.namespace = namespace
        self.name = name
        self._tls = tls
        self.where = f"{CLUSTER}{namespace}/{name}"

    @classmethod
    def from_uri(cls, api: ApiClient, uri: str) -> Self:
        """Read `kubernetes://namespace/name`.

        Where the environment holds POLARMASK_CA, its Service is asked over HTTPS.

        Raises:
            RollOutError: It is none.
            ServerError: The environment holds half a client certificate.
        """
        namespace, name = split_target(uri)
        if not name:
            raise RollOutError(f"{uri!r} is no Deployment; give kubernetes://NAMESPACE/NAME")
        return cls(api, namespace, name, tls=Tls.from_environment(f"{name}.{namespace}.svc"))

    def read(self) -> Object:
        """Return the Deployment as it is now."""
        found: Object = self._call(AppsV1Api(self._api).read_namespaced_deployment, self.name)
        return found

    def url(self, model_name: str) -> str:
        """Return where the Service answers predictions, at its address within the cluster."""
        spec = self._call(CoreV1Api(self._api).read_namespaced_service, self.name)["spec"]
        address, port = spec.get("clusterIP"), spec["ports"][0]["port"]
        if not address or address == "None":
            raise RollOutError(f"the Service of {self.where} is headless; give it an address")
        host = f"[{address}]" if ":" in address else address
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{host}:{port}/predictions/{model_name}"

    def change(
        self,
        before: Object,
        model: ServedModel,
        *,
        back: ReturnPoint | None,
        replicas: int | None = None,
    ) -> None:
        """Make the Deployment serve a model, if it is still as it was read before.

        Args:
            before: The Deployment as it was read.
            model: The model.
            back: What to return to if it fails; None once it is decided.
            replicas: Pods to scale to; None leaves their number alone.

        Raises:
            ConflictError: Another run changed its model meanwhile. Nothing was changed.
        """
        patch = patch_to(model, back=back, replicas=replicas)
        now = before
        while not self._patch(patch, now):
            now = self.read()
            found = served_model(now), undecided(now)
            if found == (model, back):
                return  # an earlier try took effect and its answer was lost
            if found != (served_model(before), undecided(before)):
                raise ConflictError(
                    f"another run put version {found[0].version or 'none'} into {self.where} "
                    "meanwhile; run again to compare with it"
                )

    def _patch(self, patch: Object, now: Object) -> bool:
        """Patch the Deployment; return False if anything of it, were it the status, has changed."""
        version = now["metadata"]["resourceVersion"]
        body = patch | {"metadata": patch["metadata"] | {"resourceVersion": version}}
        try:
            patch_deployment = AppsV1Api(self._api).patch_namespaced_deployment
            call_api(patch_deployment, self.name, self.namespace, body)
        except ApiException as error:
            if error.status == 409:
                return False
            raise ClusterError(f"{self.where}: {refusal_of(error)}") from error
        return True

    def check_serves(self, model: ServedModel) -> Object:
        """Return the Deployment.

        Raises:
            ConflictError: It is set to serve another model.
        """
        now = self.read()
        served = served_model(now)
        if served != model:
            raise ConflictError(
                f"another run put version {served.version or 'none'} into {self.where} meanwhile"
            )
        return now

    def wait(self, model: ServedModel, *, before: Object, time_out: float) -> None:
        """Return once all pods serve the model and none of another one is left to answer.

        Args:
            model: The model.
            before: The Deployment as it was before it was set to serve it.
            time_out: Seconds.

        Raises:
            ConflictError: Another run changed the model meanwhile.
            RollOutError: It failed, will never succeed, or took too long; names pod and reason.
        """
        deadline, logged = time.monotonic() + time_out, ""
        while True:
            deployment = self.check_serves(model)
            pods = self.pods(deployment)
            state = roll_out_of(deployment, pods, model, before=before, now=datetime.now(UTC))
            if state.done:
                return
            if state.message != logged:
                _log.info("%s, version %s: %s", self.where, model.version, state.message)
                logged = state.message
            late = time.monotonic() > deadline
            if state.failed or late:
                limit = f" (timed out after {time_out:.0f} s)" if late else ""
                raise RollOutError(
                    f"version {model.version} does not come up in {self.where}: {state.message}"
                    f"{limit}{self._last_output(state.trouble)}"
                )
            time.sleep(_POLL_SECONDS)

    def ask(
        self, url: str, image: bytes, *, model: tuple[str, str], deadline_seconds: float
    ) -> dict[str, Any]:
        """Ask through the Service until all its pods answer; return the last answer.

        Args:
            url: Of the Service.
            image: JPEG or PNG.
            model: Name and version that have to answer.
            deadline_seconds: Errors and nonsense are accepted until then.

        Raises:
            ServerError: Errors, nonsense, or another version.
        """
        name, version = model
        started, right = time.monotonic(), 0
        answer: dict[str, Any] = {}
        while right < _SURE:
            try:
                answer = self.ask_once(url, image)
                check_answer(answer, name, version)
                right += 1
            except ServerError:
                if time.monotonic() - started > deadline_seconds:
                    raise
                right = 0
                time.sleep(_POLL_SECONDS)
        return answer

    def ask_once(self, url: str, image: bytes) -> dict[str, Any]:
        """Ask through the Service, with the token in POLARMASK_TOKEN if there is one.

        Raises:
            ServerError: An error, or no answer.
        """
        token = os.environ.get("POLARMASK_TOKEN")
        return ask(url, image, time_out=_SECONDS_PER_ANSWER, token=token, tls=self._tls)

    def pods(self, deployment: Object) -> list[Object]:
        """Return its pods."""
        labels = deployment["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        pods = self._call(CoreV1Api(self._api).list_namespaced_pod, label_selector=selector)
        return list(pods["items"])

    def _last_output(self, trouble: Trouble | None) -> str:
        """Return the last output of a container, or nothing."""
        if trouble is None or not trouble.container:
            return ""
        for previous in (trouble.restarted, not trouble.restarted):
            lines = self._log(trouble, previous=previous).splitlines()
            if output := last_worker_error(lines) or "\n".join(lines[-_SHOWN_LINES:]):
                return f". Its last output:\n{output}\n"
        return ""

    def _log(self, trouble: Trouble, *, previous: bool) -> str:
        with suppress(ApiException, ClusterError):
            text: str = call_api(
                CoreV1Api(self._api).read_namespaced_pod_log,
                *(trouble.pod, self.namespace),
                container=trouble.container,
                previous=previous,
                tail_lines=_LOG_LINES,
                deadline_seconds=_SECONDS_FOR_LOGS,
            )
            return text
        return ""

    def _call(self, call: Callable[..., Any], *arguments: str, **options: Any) -> Any:  # noqa: ANN401  # whatever the call takes
        try:
            answer = call_api(call, *arguments, self.namespace, **options)
        except ApiException as error:
            raise RollOutError(
                f"{self.where}: {refusal_of(error)}; apply the manifests of k8s/"
            ) from error
        return self._api.sanitize_for_serialization(answer)
