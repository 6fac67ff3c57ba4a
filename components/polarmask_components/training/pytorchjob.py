"""A training job as a PyTorchJob (kubeflow.org/v1): its manifest, its state. No cluster."""

from collections.abc import Mapping
from typing import Any

from polarmask_components.parameters.train_on import PYTORCHJOB
from polarmask_components.training.job_identity import JOB_RESOURCES
from polarmask_components.training.training_job import TrainingJob

RESOURCE = JOB_RESOURCES[PYTORCHJOB]
CONTAINER = "pytorch"
"""The training operator sets the rank only in a container of this name."""

_LABEL = "training.kubeflow.org"
_SECONDS_KEPT = 24 * 3600
"""For a finished job whose launcher is gone; otherwise the launcher deletes it."""
_SPARE_ROUNDS = 2
"""Restarts that the operator allows beyond ours: the launcher ends a failing job first, because it
reads the pods' errors before they are deleted."""
_STATES = ("Failed", "Succeeded", "Suspended", "Restarting", "Running", "Created")
"""The first one that is true counts: the list of conditions has no order."""


def manifest_of(job: TrainingJob) -> dict[str, Any]:
    """Return the PyTorchJob."""
    spec: dict[str, Any] = {
        "nprocPerNode": str(job.request.known_processes_per_node),
        "runPolicy": _run_policy(job),
        "pytorchReplicaSpecs": _replicas(job),
    }
    if job.request.is_elastic:
        spec["elasticPolicy"] = {
            "minReplicas": job.request.min_nodes,
            "maxReplicas": job.request.nodes,
            "rdzvBackend": "c10d",
            "maxRestarts": job.request.job.max_restarts,
        }
    return {
        "apiVersion": RESOURCE.api_version,
        "kind": RESOURCE.kind,
        "metadata": job.metadata(),
        "spec": spec,
    }


def _run_policy(job: TrainingJob) -> dict[str, Any]:
    settings = job.request.job
    policy: dict[str, Any] = {
        "cleanPodPolicy": "Running",
        "backoffLimit": job.max_restarts + _SPARE_ROUNDS * job.request.nodes + 1,
        "activeDeadlineSeconds": round(settings.deadline_hours * 3600),
        "ttlSecondsAfterFinished": _SECONDS_KEPT,
    }
    if settings.queue:
        policy["suspend"] = True  # until the queue admits it
    return policy


def _replicas(job: TrainingJob) -> dict[str, Any]:
    """Return the pods by kind; an elastic job has no master."""
    nodes = job.request.nodes
    numbers = {"Worker": nodes} if job.request.is_elastic else {"Master": 1, "Worker": nodes - 1}
    return {
        kind: {
            "replicas": number,
            # In place: what the node has fetched already stays.
            "restartPolicy": "OnFailure",
            "template": job.pod_template(CONTAINER),
        }
        for kind, number in numbers.items()
        if number
    }


def pods_of(job: TrainingJob) -> str:
    """Return the label selector of the job's pods."""
    return f"{_LABEL}/job-name={job.name}"


def first_pod_of(job: TrainingJob) -> str:
    """Return the label selector of the pod of the first node."""
    replica = "worker" if job.request.is_elastic else "master"
    return f"{pods_of(job)},{_LABEL}/replica-type={replica},{_LABEL}/replica-index=0"


def creators_of(job: TrainingJob) -> tuple[str, ...]:
    """Return the names of the objects whose events say that a pod is refused."""
    return (job.name,)


def state_of(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return a PyTorchJob's state and its message; both "" before a controller has seen it."""
    conditions = job.get("status", {}).get("conditions") or []
    true = {
        each["type"]: each.get("message", "") for each in conditions if each["status"] == "True"
    }
    return next(((state, true[state]) for state in _STATES if state in true), ("", ""))
