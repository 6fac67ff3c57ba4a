"""Calls to Kubeflow Pipelines: each is bounded in time, and fails in words.

`kfp.Client` brings host, token and the generated API. Its own methods are left alone: they wait
without limit for an answer, and for ever for a run that was cancelled.
"""

import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import kfp
from kfp_server_api import ApiException
from urllib3.exceptions import HTTPError

from polarmask_components.retry import BUSY_STATUSES, retry
from polarmask_pipelines.errors import KubeflowError

_DEADLINE_SECONDS = 30.0
_SECONDS_PER_CALL = 30
_PAGE_SIZE = 200
# Without a namespace, kfp.Client's constructor asks /healthz five times, five seconds apart.
_NAMESPACE_NOT_USED = "none"


class KubeflowCalls:
    """The generated API of one server.

    Attributes:
        host: Address of UI and API.
        api: The generated services: `api.runs.run_service_get_run` and so on.
        models: The generated types of request bodies.
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
            warnings.simplefilter("ignore", FutureWarning)  # it warns of servers before 2.0
            self.api = kfp.Client(
                host=host, namespace=_NAMESPACE_NOT_USED, existing_token=token or None
            )
        self.models = self.api.api_models

    def is_multi_user(self) -> bool:
        """Tell whether the server has several users, each in a namespace; fail if it is none.

        The generated client would take a login page for an answer without content.
        """
        ask = self.api.healthzs.healthz_service_get_healthz
        answer = self.read(partial(ask, _preload_content=False), deadline_seconds=0)
        try:
            return bool(json.loads(answer.data).get("multi_user"))
        except (ValueError, AttributeError) as error:
            raise KubeflowError(
                f"{self.host} does not answer as Kubeflow Pipelines does; if there is a login "
                "before it, put a token into KFP_TOKEN"
            ) from error

    def all(self, call: Callable[..., Any], field: str, **arguments: str) -> list[Any]:
        """Return what all pages of a list hold."""
        found: list[Any] = []
        token = ""
        while True:
            page = self.read(partial(call, page_size=_PAGE_SIZE, page_token=token, **arguments))
            found += getattr(page, field) or []
            token = page.next_page_token
            if not token:
                return found

    def read(self, call: Callable[..., Any], *, deadline_seconds: float = _DEADLINE_SECONDS) -> Any:  # noqa: ANN401  # the generated client has no types
        """Ask; ask again while the server is busy or away."""
        try:
            return retry(
                partial(call, _request_timeout=_SECONDS_PER_CALL),
                is_passing=_is_passing,
                deadline_seconds=deadline_seconds,
                server=self.host,
            )
        except (ApiException, HTTPError) as error:
            raise KubeflowError(self._in_words(error)) from error

    def write(self, call: Callable[..., Any], **arguments: object) -> Any:  # noqa: ANN401
        """Change something, once: what was heard although no answer came must not be repeated."""
        try:
            return call(_request_timeout=_SECONDS_PER_CALL, **arguments)
        except ApiException as error:
            raise KubeflowError(self._in_words(error)) from error
        except HTTPError as error:
            raise KubeflowError(
                f"{self._in_words(error)}. The request may have been heard: look there before you "
                "repeat it"
            ) from error

    def _in_words(self, error: ApiException | HTTPError) -> str:
        if isinstance(error, HTTPError):
            reason = getattr(error, "reason", None) or error
            return f"{self.host} gave no answer: {reason}; check --host or KFP_HOST"
        words = " ".join(_refusal_of(error).split())
        if error.status in (401, 403):
            words += "; put a token that may do this into KFP_TOKEN"
        return f"{self.host} refused ({error.status}): {words}"


def _is_passing(error: Exception) -> bool:
    return isinstance(error, HTTPError) or (
        isinstance(error, ApiException) and error.status in BUSY_STATUSES
    )


def _refusal_of(error: ApiException) -> str:
    """Return the server's own words; uploads have a form of their own."""
    try:
        said = json.loads(error.body)
        return str(said.get("message") or said["error_message"])
    except (TypeError, ValueError, AttributeError, KeyError):
        return str(error.reason)
