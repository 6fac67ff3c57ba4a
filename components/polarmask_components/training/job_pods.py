"""What happens to a job's pods, recorded while it runs.

Afterwards it is too late: the controller removes the pods of a failed job, and their logs.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import call_api
from polarmask_components.errors import ClusterError
from polarmask_components.training.job_kinds import kind_of
from polarmask_components.training.pod_problems import (
    CREATION_REFUSED,
    Problem,
    problem_of,
    refusal_of_event,
)
from polarmask_components.training.training_job import TrainingJob
from polarmask_components.training.training_pod import REFUSED

logger = logging.getLogger(__name__)

_TAIL_LINES = 40
_CRASHES_SHOWN = 4
_EVENTS_SHOWN = 6
_FIXES = {"OOMKilled": "raise train_job.memory, or lower optim.batch_size with train_set"}


@dataclass(frozen=True)
class Crash:
    """One end of a container with an error."""

    pod: str
    container: str
    is_ours: bool
    """Whether it is the container that trains, and not one that a controller added."""
    exit_code: int
    reason: str
    finished: str
    """UTC, ISO 8601."""
    tail: str
    """The last lines it printed."""

    def __str__(self) -> str:
        """Return it with its last lines."""
        fix = f"; {_FIXES[self.reason]}" if self.reason in _FIXES else ""
        which = "" if self.is_ours else f", container {self.container},"
        head = f"pod {self.pod}{which} ended with exit code {self.exit_code} ({self.reason}){fix}"
        lines = [f"  | {line}" for line in self.tail.splitlines()]
        return "\n".join([head, *lines])


@dataclass
class _Seen:
    """A pod as of the last look."""

    phase: str = ""
    problem: Problem | None = None
    """Why it does not run."""
    stuck_since: float | None = None
    has_begun: bool = False
    """Whether its container has run, now or earlier."""
    crashes: dict[str, Crash] = field(default_factory=dict)
    """By time of end and container."""
    restarts: dict[str, int] = field(default_factory=dict)
    """By the pod's uid: a pod that is evicted comes back as another one."""


class JobPods:
    """The pods of one job."""

    def __init__(self, api: ApiClient, job: TrainingJob) -> None:
        self._core = CoreV1Api(api)
        self._job = job
        self._kind = kind_of(job)
        self._seen: dict[str, _Seen] = {}
        self._created: datetime | None = None
        self._missing = 0
        """Pods that the job needs and that are not there."""
        self._not_created: Problem | None = None
        self._not_created_since = 0.0
        self._noted: set[str] = set()
        """Problems that were logged already."""

    def look(self, *, has_state: bool = True, created: str = "") -> None:
        """Record what is new.

        Args:
            has_state: Whether the job has one. A controller that may not create a pod or a Service
                writes none, only an event.
            created: When the job was created, as Kubernetes writes it; "" if that is not known.
                Earlier events are about another job, which had this name in an earlier try.
        """
        if created:
            self._created = datetime.fromisoformat(created)
        found = call_api(
            self._core.list_namespaced_pod,
            self._job.namespace,
            label_selector=self._kind.pods_of(self._job),
        )
        for pod in found.items:
            seen = self._seen.setdefault(pod.metadata.name, _Seen())
            seen.phase = pod.status.phase or ""
            seen.has_begun = seen.has_begun or _has_begun(pod, self._kind.CONTAINER)
            seen.problem = problem_of(pod, self._kind.CONTAINER)
            is_stuck = seen.problem is not None and seen.problem.is_lasting
            seen.stuck_since = (seen.stuck_since or time.monotonic()) if is_stuck else None
            seen.restarts[pod.metadata.uid] = _restarts(pod)
            self._record_crashes(pod, seen)
            if seen.problem:
                self._note(f"pod {pod.metadata.name}: {seen.problem.text}")
        names = {pod.metadata.name for pod in found.items}
        for gone in self._seen.keys() - names:
            self._seen[gone].stuck_since = None
        self._missing = max(0, self._job.request.nodes - len(names))
        self._look_why_missing(has_state=has_state)

    def _look_why_missing(self, *, has_state: bool) -> None:
        problem = None
        if self._missing or not has_state:
            creators = self._kind.creators_of(self._job)
            events = [
                event for name in creators for event in self._events(f"involvedObject.name={name}")
            ]
            refused = [event for event in events if event.reason in CREATION_REFUSED]
            refused.sort(key=lambda event: str(_time_of(event)))
            problem = refusal_of_event(refused[-1]) if refused else None
        if problem and not self._not_created:
            self._not_created_since = time.monotonic()
        if problem:
            self._note(f"pods are not created: {problem.text}")
        self._not_created = problem

    def _note(self, text: str) -> None:
        """Log a problem when it is new."""
        if text not in self._noted:
            logger.warning("%s", text)
            self._noted.add(text)

    def _record_crashes(self, pod: Any, seen: _Seen) -> None:  # noqa: ANN401  # V1Pod has no types
        init, main = pod.status.init_container_statuses, pod.status.container_statuses
        for status in (*(init or ()), *(main or ())):
            for ended, previous in (
                (status.last_state and status.last_state.terminated, True),
                (status.state and status.state.terminated, False),
            ):
                key = f"{ended.finished_at} {status.name}" if ended else ""
                if not ended or not ended.exit_code or key in seen.crashes:
                    continue
                crash = Crash(
                    pod=pod.metadata.name,
                    container=status.name,
                    is_ours=status.name == self._kind.CONTAINER,
                    exit_code=ended.exit_code,
                    reason=ended.reason or "Error",
                    finished=str(ended.finished_at),
                    tail=self._tail(pod.metadata.name, status.name, previous=previous),
                )
                seen.crashes[key] = crash
                logger.warning("%s", str(crash).splitlines()[0])

    def _tail(self, pod: str, container: str, *, previous: bool) -> str:
        with suppress(ApiException, ClusterError):
            text: str = call_api(
                self._core.read_namespaced_pod_log,
                pod,
                self._job.namespace,
                container=container,
                previous=previous,
                tail_lines=_TAIL_LINES,
                deadline_seconds=5.0,
            )
            return text
        return "(its log can't be read)"

    def restarts(self) -> int:
        """Return how often containers were started again and pods evicted."""
        return sum(number for seen in self._seen.values() for number in seen.restarts.values())

    def have_started(self) -> bool:
        """Return whether training has begun on as many nodes as it needs."""
        return self._begun() >= self._needed()

    def _begun(self) -> int:
        return sum(seen.has_begun for seen in self._seen.values())

    def _needed(self) -> int:
        """Return how many nodes have to run; an elastic job continues with `min_nodes`."""
        request = self._job.request
        return request.min_nodes if request.is_elastic else request.nodes

    def why_waiting(self) -> str:
        """Return why too few pods run; "" if nothing is known of any pod."""
        if self._not_created:
            return f"its pods are refused: {self._not_created.text}"
        if not self._seen:
            return ""
        return f"{self._begun()} of {self._needed()} nodes started"

    def stuck(self, seconds: float) -> str:
        """Return why too few pods can start, if they could not for this long; else ""."""
        now = time.monotonic()
        problems = [
            f"pod {name} can't start: {seen.problem.text}"
            for name, seen in self._seen.items()
            if seen.problem and seen.stuck_since and now - seen.stuck_since >= seconds
        ]
        refused = self._not_created
        if refused and refused.is_lasting and now - self._not_created_since >= seconds:
            problems += [f"its pods are refused: {refused.text}"] * max(1, self._missing)
        if len(problems) > self._job.request.nodes - self._needed():
            return problems[0]
        for problem in problems:
            self._note(f"{problem}; training continues on the other nodes")
        return ""

    def refusal(self) -> str:
        """Return the last lines of a pod whose exit code rules out a retry; else ""."""
        refused = [
            crash for crash in self._crashes() if crash.exit_code == REFUSED and crash.is_ours
        ]
        return str(refused[-1]) if refused else ""

    def diagnosis(self) -> str:
        """Return what is known of the pods: exit codes, reasons, last lines, warnings."""
        lines = []
        for name, seen in sorted(self._seen.items()):
            problem = f", {seen.problem.text}" if seen.problem else ""
            ends = f", {len(seen.crashes)} crashes" if seen.crashes else ""
            lines.append(f"pod {name}: {seen.phase}{problem}{ends}")
        # The earliest of the last crashes caused the others.
        last = [max(seen.crashes.items())[1] for seen in self._seen.values() if seen.crashes]
        last.sort(key=lambda crash: crash.finished)
        lines += [str(crash) for crash in last[:_CRASHES_SHOWN]]
        warnings = self._warnings()
        lines += [f"event: {text}" for text in warnings]
        return "\n".join(lines) or f"it has no pods; is {self._kind.RESOURCE.controller} running?"

    def _crashes(self) -> Iterable[Crash]:
        found = [crash for seen in self._seen.values() for crash in seen.crashes.values()]
        return sorted(found, key=lambda crash: crash.finished)

    def _warnings(self) -> list[str]:
        """Return the last warnings about the job and its pods."""
        names = {*self._kind.creators_of(self._job), *self._seen}
        own = [
            f"{event.reason} {event.involved_object.name}: {event.message}"
            for event in self._events()
            if event.involved_object.name in names
        ]
        return list(dict.fromkeys(own))[-_EVENTS_SHOWN:]

    def _events(self, *selectors: str) -> list[Any]:
        """Return warnings in the job's namespace since its creation; none if they can't be read."""
        with suppress(ApiException, ClusterError):
            found = call_api(
                self._core.list_namespaced_event,
                self._job.namespace,
                field_selector=",".join(["type=Warning", *selectors]),
                deadline_seconds=5.0,
            )
            return [event for event in found.items if not self._is_older(event)]
        return []

    def _is_older(self, event: Any) -> bool:  # noqa: ANN401  # CoreV1Event has no types
        when = _time_of(event)
        return bool(self._created and when and when < self._created)


def _time_of(event: Any) -> datetime | None:  # noqa: ANN401  # CoreV1Event has no types
    when: datetime | None = event.last_timestamp or event.event_time
    return when


def _restarts(pod: Any) -> int:  # noqa: ANN401  # V1Pod has no types
    """Return how often its containers were started again; an eviction counts, too."""
    restarts: int = sum(status.restart_count for status in pod.status.container_statuses or ())
    return restarts + int(pod.status.reason == "Evicted")


def _has_begun(pod: Any, ours: str) -> bool:  # noqa: ANN401  # V1Pod has no types
    """Return whether the container that trains runs, or has run."""
    for status in pod.status.container_statuses or ():
        if status.name == ours:
            states = (status.state, status.last_state)
            return any(each and (each.running or each.terminated) for each in states)
    return False
