"""Why a pod of a training job does not run, and what to change."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

CREATION_REFUSED = (
    *("FailedCreatePod", "FailedCreate", "FailedCreateService"),
    *("TrainJobResourcesCreationFailed", "JobCreationFailed"),
)
"""Reasons of events about the job, from a controller that may not create what the job needs: the
training operator and Jobs, Trainer, JobSet."""

_OPERATORS_CONTAINER = "init-pytorch"
"""training-operator puts it into the workers of a job with a master."""
_BENIGN = (None, "ContainerCreating", "PodInitializing")
_IMAGE = "train_job.image or train_job.image_pull_secret"
_STUCK = {
    "ErrImagePull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "InvalidImageName": "train_job.image",
    "ErrImageNeverPull": "train_job.image",
    "CreateContainerConfigError": "train_job.secret",
    "CreateContainerError": "train_job",
    "RunContainerError": "train_job.image",
}
"""Reasons to wait that seldom go away by themselves, and the parameter to change."""
_NO_MASTER = "or set train_min_nodes to train_nodes, for a job without a master and this container"
_OF_OTHERS = {
    _OPERATORS_CONTAINER: (
        "training-operator adds this container: give it an image that the nodes can pull "
        f"(--pytorch-init-container-image), {_NO_MASTER}"
    ),
    "": "it is not of the pipeline: look what adds this container to pods",
}
"""What to change where a container that is not ours can't start."""
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
_FULL = "exceeded quota"
_REFUSALS = (
    (_FULL, "wait for other jobs, lower train_job's requests, or raise the ResourceQuota"),
    ("failed quota|LimitRange|usage per", "change cpu, memory or gpus_per_node of train_job"),
    (
        f'violates PodSecurity.*"{_OPERATORS_CONTAINER}"',
        "give training-operator a restricted init container "
        f"(--pytorch-init-container-template-file), {_NO_MASTER}",
    ),
    ("service account", "change train_job.service_account"),
    ("PriorityClass", "change train_job.priority_class"),
)
"""Words of a refused creation, and what to change; the first match counts."""


@dataclass(frozen=True)
class Problem:
    """Why a pod does not run."""

    text: str
    """As Kubernetes writes it, and what to change."""
    is_lasting: bool = False
    """Whether it seldom goes away by itself."""


def problem_of(pod: Any, ours: str) -> Problem | None:  # noqa: ANN401  # V1Pod has no types
    """Return why a pod does not run, or None.

    Args:
        pod: With its status.
        ours: Name of the container that trains; others are a controller's.
    """
    found = [*_waiting(pod, ours), *_pending(pod)]
    return next((each for each in found if each.is_lasting), found[0] if found else None)


def refusal_of_event(event: Any) -> Problem:  # noqa: ANN401  # CoreV1Event has no types
    """Return why something that a job needs is not created, by an event about the job."""
    message = str(event.message)
    fixes = [fix for words, fix in _REFUSALS if re.search(words, message)]
    text = "; ".join([f"{event.reason}: {message}", *fixes[:1]])
    return Problem(text, is_lasting=_FULL not in message)


def _waiting(pod: Any, ours: str) -> Iterator[Problem]:  # noqa: ANN401  # V1Pod has no types
    """Yield why containers can't start, init containers first."""
    init, main = pod.status.init_container_statuses, pod.status.container_statuses
    for status in (*(init or ()), *(main or ())):
        waiting = status.state and status.state.waiting
        if not waiting or waiting.reason in _BENIGN:
            continue
        text = f"{waiting.reason}: {waiting.message or ''}".strip(": ")
        if status.name != ours:
            text = f"container {status.name}: {text}"
        if waiting.reason not in _STUCK:
            yield Problem(text)
        elif status.name == ours:
            yield Problem(f"{text}; change {_STUCK[waiting.reason]}", is_lasting=True)
        else:
            fix = _OF_OTHERS.get(status.name, _OF_OTHERS[""])
            yield Problem(f"{text}; {fix}", is_lasting=True)


def _pending(pod: Any) -> Iterator[Problem]:  # noqa: ANN401  # V1Pod has no types
    """Yield why it has no node, or lost it."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            yield Problem(f"{condition.reason}: {condition.message}")
            return
    reason, message = pod.status.reason, pod.status.message or ""
    if reason:
        evicted = reason == "Evicted"
        fixes = [fix for words, fix in _EVICTIONS if evicted and re.search(words, message)]
        yield Problem(f"{reason}: {'; '.join([message, *fixes[:1]])}")
