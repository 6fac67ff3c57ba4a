"""A training job as a PyTorchJob (kubeflow.org/v1): its manifest, its state. No cluster."""

from collections.abc import Mapping
from typing import Any

from polarmask_components.training.job_identity import GROUP, VERSION
from polarmask_components.training.training_job import LABELS, TrainingJob

JOB_LABEL = "training.kubeflow.org/job-name"
SPEC_ANNOTATION = "polarmask.io/spec-sha256"

_SECONDS_KEPT = 24 * 3600
"""For a finished job whose launcher is gone; otherwise the launcher deletes it."""
_SPARE_ROUNDS = 2
"""Restarts that the operator allows beyond ours: the launcher ends a failing job first, because it
reads the pods' errors before they are deleted."""
_STATES = ("Failed", "Succeeded", "Suspended", "Restarting", "Running", "Created")
"""The first one that is true counts: the list of conditions has no order."""


def manifest_of(job: TrainingJob) -> dict[str, Any]:
    """Return the PyTorchJob."""
    metadata: dict[str, Any] = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": {**LABELS},
        "annotations": {SPEC_ANNOTATION: job.spec_sha256},
    }
    if job.request.job.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = job.request.job.queue
    if job.owner:
        metadata["ownerReferences"] = [dict(job.owner)]
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
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "PyTorchJob",
        "metadata": metadata,
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
            "template": job.pod_template(),
        }
        for kind, number in numbers.items()
        if number
    }


def first_pod(job: TrainingJob) -> str:
    """Return the name of the pod of the first node."""
    return f"{job.name}-{'worker' if job.request.is_elastic else 'master'}-0"


def state_of(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return a PyTorchJob's state and its message; both "" before a controller has seen it."""
    conditions = job.get("status", {}).get("conditions") or []
    true = {
        each["type"]: each.get("message", "") for each in conditions if each["status"] == "True"
    }
    return next(((state, true[state]) for state in _STATES if state in true), ("", ""))
