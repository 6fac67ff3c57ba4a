"""The step that made a run on Kubeflow fail, and the last lines of its log.

The server names every level of the graph as failed, gives no texts, and no pod names either. Pods
are read from Kubernetes, where the kubeconfig allows it.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import call_api, connect
from polarmask_components.errors import ClusterError
from polarmask_pipelines.package import Package

_RUN_LABEL = "pipeline/runid"
_PATH = "workflows.argoproj.io/node-name"
"""Annotation: WORKFLOW.root.exit-handler-1(0).train(0).executor, or ...train-driver."""
_CONTAINER = "main"
_DRIVER = "-driver"
_TAIL_LINES, _LINES_SHOWN = 60, 15
_OF_LAUNCHER = re.compile(r'time="|[IWEF]\d{4} |Error: exit status ')
"""Lines of the programs around a step, which say only that it failed."""
_SECONDS: dict[str, Any] = {"deadline_seconds": 5.0, "_request_timeout": 10.0}


@dataclass(frozen=True)
class FailedPod:
    """The pod of the last try of a step."""

    name: str
    reason: str
    """As Kubernetes writes it: `exit code 137 (OOMKilled)`, or why the pod was evicted."""
    lines: tuple[str, ...]
    """The last ones of its log; none if it can't be read."""


def failed_step(package: Package, tasks: Iterable[Any]) -> str:
    """Return the name of the step that failed first, or "" if the server names none.

    Args:
        package: The pipeline that ran.
        tasks: `run.run_details.task_details`: steps, the graphs around them, tries as X(0),
            drivers and executors.
    """
    failed = [each for each in tasks if each.state == "FAILED"]
    failed.sort(key=lambda each: each.end_time.timestamp() if each.end_time else float("inf"))
    names = [str(each.display_name) for each in failed]
    steps = _steps_of(package)
    # A try that failed says nothing if a later one worked: then X itself did not fail.
    for name in (*names, *(_plain(each) for each in names)):
        if name.removesuffix(_DRIVER) in steps:
            return name.removesuffix(_DRIVER)
    return names[0] if names else ""


def failed_pod(step: str, *, run_id: str, namespace: str) -> FailedPod | None:
    """Return the pod of a step that failed; None if no pod of it can be read."""
    with suppress(ApiException, ClusterError):
        core = CoreV1Api(connect())
        found = call_api(
            core.list_namespaced_pod, namespace, label_selector=f"{_RUN_LABEL}={run_id}", **_SECONDS
        )
        pods = [pod for pod in found.items if pod.status.phase == "Failed" and _is_of(pod, step)]
        if pods:
            last = max(pods, key=lambda pod: pod.metadata.creation_timestamp)
            lines = _last_lines(core, last.metadata.name, namespace)
            return FailedPod(last.metadata.name, _reason_of(last), lines)
    return None


def log_command(pod: FailedPod | None, *, run_id: str, namespace: str) -> str:
    """Return the command that shows the whole log; of all pods of the run, if none is known."""
    which = pod.name if pod else f"-l {_RUN_LABEL}={run_id} --prefix --tail 100"
    return f"kubectl -n {namespace} logs {which} -c {_CONTAINER}"


def _steps_of(package: Package) -> set[str]:
    """Return the names of the tasks that are no graphs."""
    pipeline = next(iter(yaml.safe_load_all(package.text)))
    components = pipeline["components"]
    graphs = [each["dag"] for each in (pipeline["root"], *components.values()) if "dag" in each]
    return {
        name
        for graph in graphs
        for name, task in graph["tasks"].items()
        if "dag" not in components[task["componentRef"]["name"]]
    }


def _plain(name: str) -> str:
    """Return the name of a task without the number of the try."""
    return name.partition("(")[0]


def _is_of(pod: Any, step: str) -> bool:  # noqa: ANN401  # V1Pod has no types
    path = (pod.metadata.annotations or {}).get(_PATH, "").split(".")
    names = [_plain(each) for each in path]
    return step in names[-2:] or names[-1] == f"{step}{_DRIVER}"


def _reason_of(pod: Any) -> str:  # noqa: ANN401  # V1Pod has no types
    if pod.status.reason:
        return f"{pod.status.reason}: {pod.status.message or ''}".strip(": ")
    for status in pod.status.container_statuses or ():
        ended = status.state and status.state.terminated
        if ended and status.name == _CONTAINER:
            return f"exit code {ended.exit_code} ({ended.reason or 'Error'})"
    return ""


def _last_lines(core: CoreV1Api, pod: str, namespace: str) -> tuple[str, ...]:
    with suppress(ApiException, ClusterError):
        text: str = call_api(
            core.read_namespaced_pod_log,
            *(pod, namespace),
            container=_CONTAINER,
            tail_lines=_TAIL_LINES,
            **_SECONDS,
        )
        lines = [line for line in text.splitlines() if not _OF_LAUNCHER.match(line)]
        return tuple(lines[-_LINES_SHOWN:])
    return ()
