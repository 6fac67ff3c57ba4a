"""A training job as a TrainJob (trainer.kubeflow.org/v1alpha1): its manifest, its state.

The pods come from a TrainingRuntime, k8s/components/trainer: it holds what an administrator
decides, such as rights and labels of the pods, and the job says what the run decides. The fields
are those of Kubeflow Trainer 2.2; an API server with earlier ones refuses `runtimePatches`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from polarmask_components.parameters.train_on import TRAINJOB
from polarmask_components.training.job_identity import JOB_RESOURCES
from polarmask_components.training.training_job import TrainingJob

RESOURCE = JOB_RESOURCES[TRAINJOB]
CONTAINER = "node"
"""Trainer sets image, command and rank only in a container of this name."""

_REPLICATED_JOB = "node"
"""Of the runtime, with the pods that train."""
_PATCHED_BY = "polarmask.io/train-step"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_MAY_LACK = (
    *("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "POLARMASK_STORAGE_CA"),
)
"""Entries of the Secret: a TrainJob can't take a Secret whole, only entries by name."""
_PATCHED = ("volumes", "serviceAccountName", "nodeSelector", "tolerations", "imagePullSecrets")
_STATES = (("Failed", "Failed"), ("Complete", "Succeeded"), ("Suspended", "Suspended"))
"""Conditions, and the state that each one means; the first one that is true counts."""


def manifest_of(job: TrainingJob) -> dict[str, Any]:
    """Return the TrainJob."""
    settings = job.request.job
    pod = job.pod_template(CONTAINER)["spec"]
    (container,) = pod["containers"]
    spec: dict[str, Any] = {
        "runtimeRef": {
            "apiGroup": RESOURCE.group,
            "kind": "TrainingRuntime",
            "name": settings.runtime,
        },
        "trainer": {
            **{name: container[name] for name in ("image", "command", "args")},
            "env": [*container["env"], *_from_secret(container)],
            "numNodes": job.request.nodes,
            "numProcPerNode": job.request.known_processes_per_node,
            "resourcesPerNode": container["resources"],
        },
        "runtimePatches": [_patch(pod, container)],
        "activeDeadlineSeconds": round(settings.deadline_hours * 3600),
    }
    if settings.queue:
        spec["suspend"] = True  # until the queue admits it
    return {
        "apiVersion": RESOURCE.api_version,
        "kind": RESOURCE.kind,
        "metadata": job.metadata(),
        "spec": spec,
    }


def _from_secret(container: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield variables for the entries of the container's Secrets that are not set otherwise."""
    known = {each["name"] for each in container["env"]}
    for source in container.get("envFrom", []):
        for key in (*_KEYS, *_MAY_LACK):
            if key not in known:
                entry = {**source["secretRef"], "key": key, "optional": key in _MAY_LACK}
                yield {"name": key, "valueFrom": {"secretKeyRef": entry}}


def _patch(pod: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the pod differs from run to run, as a change of the runtime."""
    changed = {name: pod[name] for name in _PATCHED if name in pod}
    changed["containers"] = [{"name": CONTAINER, "volumeMounts": container["volumeMounts"]}]
    of_job = {"name": _REPLICATED_JOB, "template": {"spec": {"template": {"spec": changed}}}}
    return {
        "manager": _PATCHED_BY,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [of_job]}}},
    }


def pods_of(job: TrainingJob) -> str:
    """Return the label selector of the job's pods."""
    return f"jobset.sigs.k8s.io/jobset-name={job.name}"


def first_pod_of(job: TrainingJob) -> str:
    """Return the label selector of the pod of the first node."""
    return f"{pods_of(job)},batch.kubernetes.io/job-completion-index=0"


def creators_of(job: TrainingJob) -> tuple[str, ...]:
    """Return the names of the objects whose events say that a pod is refused.

    The TrainJob makes a JobSet of its own name, and that makes a Job, which makes the pods.
    """
    return job.name, f"{job.name}-{_REPLICATED_JOB}-0"


def state_of(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return a TrainJob's state and its message; both "" before a controller has seen it."""
    status = job.get("status") or {}
    true = {
        each["type"]: each.get("message", "")
        for each in status.get("conditions") or []
        if each["status"] == "True"
    }
    for condition, state in _STATES:
        if condition in true:
            return state, true[condition]
    # There is no condition for a job that runs.
    jobs = status.get("jobsStatus") or []
    if any(each.get("ready") for each in jobs):
        return "Running", ""
    return ("Created" if jobs else ""), ""
