"""The client of the Kubernetes API, with retries.

A training of forty hours must survive a restart of the API server.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, SSLError

from polarmask_components.cluster.commands import how_to_allow
from polarmask_components.errors import ClusterError
from polarmask_components.retry import BUSY_STATUSES, DEADLINE_SECONDS, retry

_REFUSED = {401, 403}
_DENIAL = re.compile("denied (the )?request")
"""Words of an admission webhook or policy: no Role would help."""
_SECONDS_PER_CALL = 30.0
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Answer = TypeVar("Answer")


def connect() -> ApiClient:
    """Return a client with this pod's service account, or with the kubeconfig outside of a pod.

    Raises:
        ClusterError: Neither is there, or the kubeconfig can't be used.
    """
    settings = Configuration()
    try:
        if _OWN_NAMESPACE.is_file():
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(_kubeconfig(), client_configuration=settings)
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"no Kubernetes cluster: {error}; outside of a pod KUBECONFIG has to name a "
            "kubeconfig file"
        ) from error
    settings.retries = False  # `call_api` retries, and logs it
    return ApiClient(settings)


def own_namespace() -> str:
    """Return the namespace of this pod, or of the kubeconfig's current context outside of one."""
    if _OWN_NAMESPACE.is_file():
        return _OWN_NAMESPACE.read_text().strip()
    try:
        _, current = config.list_kube_config_contexts(_kubeconfig())
    except (config.ConfigException, OSError):
        return "default"
    return str(current["context"].get("namespace") or "default")


def _kubeconfig() -> str | None:
    """Return the value of KUBECONFIG now; None for the default place."""
    return os.environ.get("KUBECONFIG")


def call_api(
    call: Callable[..., Answer],
    *args: Any,  # noqa: ANN401  # whatever the call takes
    deadline_seconds: float = DEADLINE_SECONDS,
    **options: Any,  # noqa: ANN401  # of the call, as above
) -> Answer:
    """Call the API; retry while it is busy or can't be reached.

    A call whose response was lost may have taken effect: after a retry, creating may find its own
    object (409), and deleting may find nothing (404).

    Args:
        call: Method of one of the client's API classes.
        args: Arguments of the call.
        deadline_seconds: How long to retry.
        options: Keyword arguments of the call.

    Raises:
        ClusterError: Not allowed, or no answer until the deadline.
        ApiException: Any other refusal, such as 404, 409 or 422.
    """
    options.setdefault("_request_timeout", _SECONDS_PER_CALL)
    try:
        return retry(
            lambda: call(*args, **options),
            is_passing=_is_passing,
            deadline_seconds=deadline_seconds,
            server="Kubernetes API",
            reason_of=_reason_of,
        )
    except (ApiException, HTTPError) as error:
        if _is_passing(error):
            raise ClusterError(
                f"the Kubernetes API gave no answer for {deadline_seconds:.0f} s; the last try "
                f"ended with: {_reason_of(error)}"
            ) from error
        if isinstance(error, SSLError):
            raise ClusterError(
                f"the Kubernetes API's certificate is not accepted: {error}; check the "
                "certificate authority in the kubeconfig"
            ) from error
        if isinstance(error, ApiException) and error.status in _REFUSED:
            raise ClusterError(_explain_refusal(error)) from error
        raise


def _is_passing(error: Exception) -> bool:
    if isinstance(error, ApiException):
        return error.status in BUSY_STATUSES
    return isinstance(error, HTTPError) and not isinstance(error, SSLError)


def _reason_of(error: Exception) -> str:
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else str(error)


def refusal_of(error: ApiException) -> str:
    """Return the API's message of a refusal, in one line."""
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return f"{error.status} {error.reason}"


def _explain_refusal(error: ApiException) -> str:
    refusal = refusal_of(error)
    if _DENIAL.search(refusal):
        return f"the Kubernetes API refused: {refusal}"
    if error.status == 401:
        how = "the credentials are not accepted; renew the kubeconfig or service-account token"
    else:
        how = how_to_allow(refusal) or "give this account a Role that allows it"
    return f"the Kubernetes API refused: {refusal}; {how}"
