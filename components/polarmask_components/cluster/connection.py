"""The way to a Kubernetes cluster, patient with its bad moments.

A training of forty hours has to outlive a restart of the API server.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError, SSLError

from polarmask_components.cluster.patience import PATIENCE_SECONDS, persist
from polarmask_components.errors import ClusterError

_BUSY = {408, 429, 500, 502, 503, 504}
_REFUSED = {401, 403}
_SECONDS_PER_CALL = 30.0
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

Answer = TypeVar("Answer")


def connect() -> ApiClient:
    """Return a client: as this pod's service account, or as the kubeconfig says outside of one.

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
            f"no Kubernetes cluster: {error}; outside of a pod KUBECONFIG has to name a file that "
            "leads to one"
        ) from error
    settings.retries = False  # `patiently` tries again, and says so
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
    """Return what KUBECONFIG says now; None for the usual place."""
    return os.environ.get("KUBECONFIG")


def patiently(
    call: Callable[..., Answer],
    *args: Any,  # noqa: ANN401  # whatever the call takes
    patience_seconds: float = PATIENCE_SECONDS,
    **options: Any,  # noqa: ANN401  # of the call, as above
) -> Answer:
    """Call the API; try again while it is busy or can't be reached.

    A call whose answer got lost may have been heard: after a retry, creating may meet what it
    created (409), and deleting find nothing (404).

    Args:
        call: Method of one of the client's API classes.
        args: Of the call.
        patience_seconds: How long to go on trying.
        options: Of the call.

    Raises:
        ClusterError: Not allowed, or no answer for all this time.
        ApiException: Any other refusal, such as 404, 409 or 422.
    """
    options.setdefault("_request_timeout", _SECONDS_PER_CALL)
    try:
        return persist(
            lambda: call(*args, **options),
            whom="Kubernetes API",
            passes=_passing,
            patience_seconds=patience_seconds,
        )
    except (ApiException, HTTPError) as error:
        words = _passing(error)
        if words:
            raise ClusterError(
                f"the Kubernetes API gave no answer for {patience_seconds:.0f} s; the last try "
                f"ended with: {words}"
            ) from error
        if isinstance(error, SSLError):
            raise ClusterError(
                f"the Kubernetes API's certificate is not accepted: {error}; check the "
                "certificate authority in the kubeconfig"
            ) from error
        if isinstance(error, ApiException) and error.status in _REFUSED:
            raise ClusterError(_explain_refusal(error)) from error
        raise


def _passing(error: Exception) -> str:
    """Say what may pass by itself; "" for what will not."""
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}" if error.status in _BUSY else ""
    return str(error) if isinstance(error, HTTPError) and not isinstance(error, SSLError) else ""


def refusal_of(error: ApiException) -> str:
    """Return the API's own words for a refusal, in one line."""
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return f"{error.status} {error.reason}"


def _explain_refusal(error: ApiException) -> str:
    if error.status == 401:
        how = "the credentials are not accepted; renew the kubeconfig or service-account token"
    else:
        how = "give this service account the Role of k8s/base"
    return f"the Kubernetes API refused: {refusal_of(error)}; {how}"
