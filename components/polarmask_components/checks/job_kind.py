"""Which kinds of training jobs a cluster has, and whether a job of the wanted kind can start."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from kubernetes.client import ApiClient, CustomObjectsApi
from kubernetes.client.exceptions import ApiException

from polarmask.errors import ConfigError
from polarmask_components.checks.cluster_access import DEADLINE_SECONDS, RUNTIME_ACCESS, is_allowed
from polarmask_components.cluster.connection import call_api, connect
from polarmask_components.errors import ComponentError
from polarmask_components.parameters.train_on import AUTO, TRAINJOB
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.job_identity import JOB_RESOURCES, JobResource

logger = logging.getLogger(__name__)


def with_job_kind(request: TrainingRequest) -> TrainingRequest:
    """Return the request with a kind of job that the cluster has, where `train_on=auto`.

    PyTorchJob comes first where a cluster has both: it can be elastic. The request stays as it is
    where no kind fits, or no cluster responds; `problems_of_kind` then says what to do.
    """
    if request.on != AUTO:
        return request
    with suppress(ComponentError, ApiException):
        for on in served_kinds(connect()):
            with suppress(ConfigError):
                chosen = replace(request, on=on)
                logger.info("train_on=auto: this cluster has %s", JOB_RESOURCES[on].kind)
                return chosen
    return request


def served_kinds(api: ApiClient) -> list[str]:
    """Return the values of `train_on` that the cluster has jobs for.

    Uses discovery, which is open to all; reading the definitions takes a right of its own.
    """
    return [on for on, resource in JOB_RESOURCES.items() if _is_served(api, resource)]


def _is_served(api: ApiClient, resource: JobResource) -> bool:
    try:
        served = call_api(
            CustomObjectsApi(api).get_api_resources,
            *(resource.group, resource.version),
            deadline_seconds=DEADLINE_SECONDS,
        )
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return resource.plural in {each.name for each in served.resources}


def problems_of_kind(api: ApiClient, request: TrainingRequest, namespace: str) -> Iterator[str]:
    """Yield why no job of the wanted kind can start."""
    served = served_kinds(api)
    if request.on == AUTO:
        yield from _why_none_fits(request, served)
    elif request.on not in served:
        wanted = JOB_RESOURCES[request.on]
        others = "".join(f", or set train_on={on}" for on in served)
        yield (
            f"the cluster serves no {wanted.kind} of {wanted.api_version}; install "
            f"{wanted.controller}{others}"
        )
    elif request.on == TRAINJOB and is_allowed(api, RUNTIME_ACCESS, namespace=namespace):
        yield from _problems_of_runtime(api, request.job.runtime, namespace)


def _why_none_fits(request: TrainingRequest, served: list[str]) -> Iterator[str]:
    if not served:
        kinds = " and no ".join(each.kind for each in JOB_RESOURCES.values())
        controllers = " or ".join(each.controller for each in JOB_RESOURCES.values())
        yield f"the cluster serves no {kinds}; install {controllers}"
    for on in served:
        try:
            replace(request, on=on)
        except ConfigError as error:
            yield f"train_on=auto, and the cluster has {JOB_RESOURCES[on].kind} only: {error}"


def _problems_of_runtime(api: ApiClient, name: str, namespace: str) -> Iterator[str]:
    resource = JOB_RESOURCES[TRAINJOB]
    try:
        call_api(
            CustomObjectsApi(api).get_namespaced_custom_object,
            *(resource.group, resource.version, namespace, "trainingruntimes", name),
            deadline_seconds=DEADLINE_SECONDS,
        )
    except ApiException as error:
        if error.status != 404:
            raise
        yield (
            f"namespace {namespace}: no TrainingRuntime {name}; apply it: kubectl --namespace "
            f"{namespace} apply --filename k8s/components/trainer/runtime.yaml"
        )
