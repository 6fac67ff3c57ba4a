"""`kfp.Client` with a time limit for each call, retries for reads, and readable errors.

The client itself waits for an answer without a limit, and raises errors of several libraries.
"""

import json
import warnings
from functools import partial
from typing import Any

import kfp
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError

from polarmask_components.retry import BUSY_STATUSES, retry
from polarmask_pipelines.errors import KubeflowError

_SECONDS_PER_CALL = 30
_RETRY_SECONDS = 30.0
# Without a namespace, kfp.Client's constructor calls /healthz five times, five seconds apart.
_UNUSED_NAMESPACE = "none"
_NO_RECURRING_RUN = "00000000-0000-0000-0000-000000000000"
_NO_POLICY = "NO_SUCH_POLICY"


class KubeflowCalls:
    """The client of one server.

    Attributes:
        host: Address of UI and API.
        client: Raises KubeflowError when a call fails.
        is_multi_user: Whether each user has a namespace on the server.
        retry_seconds: How long reads are retried while the server is busy or can't be reached.
    """

    def __init__(self, host: str, *, token: str = "") -> None:
        if not host.startswith(("http://", "https://")):
            raise KubeflowError(
                f"{host!r} is no address of Kubeflow Pipelines: give --host or set KFP_HOST to "
                "http(s)://..., for example http://127.0.0.1:8080 after `kubectl port-forward "
                "--namespace kubeflow service/ml-pipeline-ui 8080:80`"
            )
        self.host = host.rstrip("/")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about servers before 2.0
            self.client = kfp.Client(
                host=host, namespace=_UNUSED_NAMESPACE, existing_token=token or None
            )
        rest = self.client.runs.api_client.rest_client  # all services send through it
        self._send = rest.request
        rest.request = self._request
        self.retry_seconds = 0.0
        self.is_multi_user = self._is_multi_user()
        self.retry_seconds = _RETRY_SECONDS

    def _is_multi_user(self) -> bool:
        # Unparsed: the generated client would take a login page for an empty answer.
        health = self.client.healthzs.healthz_service_get_healthz(_preload_content=False)
        try:
            return bool(json.loads(health.data).get("multi_user"))
        except (ValueError, AttributeError) as error:
            raise KubeflowError(
                f"{self.host} does not answer as Kubeflow Pipelines does; if there is a login "
                "before it, put a token into KFP_TOKEN"
            ) from error

    def can_orphan(self) -> bool:
        """Return whether the server can delete a recurring run and leave its workflows alone.

        Servers that know the option refuse a value that does not exist. Older ones ignore options
        that they don't know, and find no recurring run. There is no version to ask for.
        """
        try:
            self.client.recurring_runs.recurring_run_service_delete_recurring_run(
                _NO_RECURRING_RUN, propagation_policy=_NO_POLICY
            )
        except KubeflowError as error:
            refusal = error.__cause__
            if not isinstance(refusal, ApiException):
                raise
            return refusal.status == 400 and _NO_POLICY in str(refusal.body)
        return False

    def _request(self, method: str, url: str, **arguments: object) -> Any:  # noqa: ANN401  # the generated client has no types
        arguments["_request_timeout"] = _SECONDS_PER_CALL
        reads = method == "GET"
        try:
            return retry(
                partial(self._send, method, url, **arguments),
                is_passing=_is_passing,
                # A change without an answer may have taken effect, so it is not repeated.
                deadline_seconds=self.retry_seconds if reads else 0,
                server=self.host,
                reason_of=_reason_of,
            )
        except ApiException as error:
            raise KubeflowError(f"{self.host} {_refusal(error)}") from error
        except HTTPError as error:
            reason = _reason_of(error)
            advice = "" if reads else ". The request may have taken effect: check before a retry"
            raise KubeflowError(
                f"{self.host} gave no answer: {reason}; check --host or KFP_HOST{advice}"
            ) from error


def _is_passing(error: Exception) -> bool:
    busy = isinstance(error, ApiException) and error.status in BUSY_STATUSES
    return busy or isinstance(error, HTTPError)


def _reason_of(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return str(getattr(error, "reason", None) or error)


def _refusal(error: ApiException) -> str:
    """Return status and message of a refusal; uploads have a form of their own."""
    try:
        content = json.loads(error.body)
        message = str(content.get("message") or content["error_message"])
    except (TypeError, ValueError, AttributeError, KeyError):
        message = str(error.reason)
    login = "; put a token that may do this into KFP_TOKEN" if error.status in (401, 403) else ""
    return f"refused ({error.status}): {' '.join(message.split())}{login}"
