"""What happens to a job's pods, recorded while it runs.

Afterwards it is too late: the operator removes the pods of a failed job, and their logs.
"""

import logging
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import call_api
from polarmask_components.errors import ClusterError
from polarmask_components.training.pytorchjob import JOB_LABEL
from polarmask_components.training.training_job import CONTAINER, TrainingJob
from polarmask_components.training.training_pod import REFUSED

logger = logging.getLogger(__name__)

_TAIL_LINES = 40
_CRASHES_SHOWN = 4
_EVENTS_SHOWN = 6
_STUCK = {
    "ErrImagePull": "train_job.image or train_job.image_pull_secret",
    "ImagePullBackOff": "train_job.image or train_job.image_pull_secret",
    "InvalidImageName": "train_job.image",
    "ErrImageNeverPull": "train_job.image",
    "CreateContainerConfigError": "train_job.secret",
    "CreateContainerError": "train_job",
    "RunContainerError": "train_job.image",
}
"""Reasons to wait that seldom go away by themselves, and the parameter to change."""
_FIXES = {"OOMKilled": "raise train_job.memory, or lower optim.batch_size with train_set"}
_EVICTIONS = (
    (r'volume "shm"', "raise train_job.shm"),
    (r"resource: memory|MemoryPressure", "raise train_job.memory, which the node then reserves"),
    (
        r"resource: pids|PIDPressure",
        "the node has too many processes: choose others with train_job.node_selector, or lower "
        "train_processes_per_node",
    ),
    (
        r"resource: (ephemeral-storage|inodes)|DiskPressure",
        "the node's disk is full: raise train_job.disk, which the node then reserves, or choose "
        "other nodes with train_job.node_selector",
    ),
    (r"EmptyDir volume|ephemeral.*storage", "raise train_job.disk"),
)
"""Words of the kubelet when it evicts a pod, and the setting to change; the first match counts."""


@dataclass(frozen=True)
class Crash:
    """One end of a container with an error."""

    pod: str
    exit_code: int
    reason: str
    finished: str
    """UTC, ISO 8601."""
    tail: str
    """The last lines it printed."""

    def __str__(self) -> str:
        """Return it with its last lines."""
        fix = f"; {_FIXES[self.reason]}" if self.reason in _FIXES else ""
        head = f"pod {self.pod} ended with exit code {self.exit_code} ({self.reason}){fix}"
        lines = [f"  | {line}" for line in self.tail.splitlines()]
        return "\n".join([head, *lines])


@dataclass
class _Seen:
    """A pod as of the last look."""

    phase: str = ""
    problem: str = ""
    """Why it waits, as Kubernetes writes it."""
    stuck_since: float | None = None
    crashes: dict[str, Crash] = field(default_factory=dict)
    """By time of end."""
    restarts: dict[str, int] = field(default_factory=dict)
    """By the pod's uid: a pod that is evicted comes back as another one."""


class JobPods:
    """The pods of one job."""

    def __init__(self, api: ApiClient, job: TrainingJob) -> None:
        self._core = CoreV1Api(api)
        self._job = job
        self._seen: dict[str, _Seen] = {}
        self._noted: set[str] = set()
        """Problems that were logged already."""

    def look(self) -> None:
        """Record what is new."""
        found = call_api(
            self._core.list_namespaced_pod,
            self._job.namespace,
            label_selector=f"{JOB_LABEL}={self._job.name}",
        )
        for pod in found.items:
            seen = self._seen.setdefault(pod.metadata.name, _Seen())
            seen.phase = pod.status.phase or ""
            waiting = _waiting(pod)
            seen.problem = waiting or _pending(pod)
            is_stuck = _reason_of(waiting) in _STUCK
            seen.stuck_since = (seen.stuck_since or time.monotonic()) if is_stuck else None
            seen.restarts[pod.metadata.uid] = _restarts(pod)
            self._record_crashes(pod, seen)
        names = {pod.metadata.name for pod in found.items}
        for gone in self._seen.keys() - names:
            self._seen[gone].stuck_since = None

    def _record_crashes(self, pod: Any, seen: _Seen) -> None:  # noqa: ANN401  # V1Pod has no types
        for status in pod.status.container_statuses or ():
            for ended, previous in (
                (status.last_state and status.last_state.terminated, True),
                (status.state and status.state.terminated, False),
            ):
                if not ended or not ended.exit_code or str(ended.finished_at) in seen.crashes:
                    continue
                crash = Crash(
                    pod=pod.metadata.name,
                    exit_code=ended.exit_code,
                    reason=ended.reason or "Error",
                    finished=str(ended.finished_at),
                    tail=self._tail(pod.metadata.name, previous=previous),
                )
                seen.crashes[crash.finished] = crash
                logger.warning("%s", str(crash).splitlines()[0])

    def _tail(self, pod: str, *, previous: bool) -> str:
        with suppress(ApiException, ClusterError):
            text: str = call_api(
                self._core.read_namespaced_pod_log,
                pod,
                self._job.namespace,
                container=CONTAINER,
                previous=previous,
                tail_lines=_TAIL_LINES,
                deadline_seconds=5.0,
            )
            return text
        return "(its log can't be read)"

    def restarts(self) -> int:
        """Return how often containers were started again and pods evicted."""
        return sum(number for seen in self._seen.values() for number in seen.restarts.values())

    def stuck(self, seconds: float) -> str:
        """Return why too few pods can start, if they could not for this long; else "".

        An elastic job continues without a pod as long as it has `min_nodes`.
        """
        now, request = time.monotonic(), self._job.request
        problems = [
            f"pod {name} can't start: {seen.problem}; change {_STUCK[_reason_of(seen.problem)]}"
            for name, seen in self._seen.items()
            if seen.stuck_since and now - seen.stuck_since >= seconds
        ]
        spare = request.nodes - request.min_nodes if request.is_elastic else 0
        if len(problems) > spare:
            return problems[0]
        for problem in problems:
            if problem not in self._noted:
                logger.warning("%s; training continues on the other nodes", problem)
                self._noted.add(problem)
        return ""

    def refusal(self) -> str:
        """Return the last lines of a pod whose exit code rules out a retry; else ""."""
        refused = [crash for crash in self._crashes() if crash.exit_code == REFUSED]
        return str(refused[-1]) if refused else ""

    def diagnosis(self) -> str:
        """Return what is known of the pods: exit codes, reasons, last lines, warnings."""
        lines = []
        for name, seen in sorted(self._seen.items()):
            problem = f", {seen.problem}" if seen.problem else ""
            ends = f", {len(seen.crashes)} crashes" if seen.crashes else ""
            lines.append(f"pod {name}: {seen.phase}{problem}{ends}")
        # The earliest of the last crashes caused the others.
        last = [max(seen.crashes.items())[1] for seen in self._seen.values() if seen.crashes]
        last.sort(key=lambda crash: crash.finished)
        lines += [str(crash) for crash in last[:_CRASHES_SHOWN]]
        warnings = self._warnings()
        lines += [f"event: {text}" for text in warnings]
        return "\n".join(lines) or "it has no pods; is the training operator running?"

    def _crashes(self) -> Iterable[Crash]:
        found = [crash for seen in self._seen.values() for crash in seen.crashes.values()]
        return sorted(found, key=lambda crash: crash.finished)

    def _warnings(self) -> list[str]:
        """Return the last warnings about the job and its pods."""
        try:
            found = call_api(
                self._core.list_namespaced_event,
                self._job.namespace,
                field_selector="type=Warning",
                deadline_seconds=5.0,
            ).items
        except (ApiException, ClusterError):
            return []
        names = {self._job.name, *self._seen}
        own = [
            f"{event.reason} {event.involved_object.name}: {event.message}"
            for event in found
            if event.involved_object.name in names
        ]
        return list(dict.fromkeys(own))[-_EVENTS_SHOWN:]


def _restarts(pod: Any) -> int:  # noqa: ANN401  # V1Pod has no types
    """Return how often its containers were started again; an eviction counts, too."""
    restarts: int = sum(status.restart_count for status in pod.status.container_statuses or ())
    return restarts + int(pod.status.reason == "Evicted")


def _waiting(pod: Any) -> str:  # noqa: ANN401  # V1Pod has no types
    """Return why its container can't start, as "REASON: message", or ""."""
    for status in pod.status.container_statuses or ():
        waiting = status.state and status.state.waiting
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"{waiting.reason}: {waiting.message or ''}".strip(": ")
    return ""


def _pending(pod: Any) -> str:  # noqa: ANN401  # V1Pod has no types
    """Return why it has no node, or lost it, or ""."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message}"
    reason = pod.status.reason
    if not reason:
        return ""
    message = pod.status.message or ""
    fixes = [fix for words, fix in _EVICTIONS if reason == "Evicted" and re.search(words, message)]
    return f"{reason}: {'; '.join([message, *fixes[:1]])}"


def _reason_of(problem: str) -> str:
    return problem.partition(":")[0]
