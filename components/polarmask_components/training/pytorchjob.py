"""A training job as a value, and as the PyTorchJob (kubeflow.org/v1) that runs it. No cluster."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polarmask_components.run.job_settings import JobSettings

GROUP, VERSION, PLURAL = "kubeflow.org", "v1", "pytorchjobs"
CONTAINER = "pytorch"
"""The operator tells only a container of this name of its rank."""
JOB_LABEL = "training.kubeflow.org/job-name"
SPEC_ANNOTATION = "polarmask.io/spec-sha256"

_WORKSPACE = "/workspace"
_USER = 1000
_SECONDS_TO_STOP = 120
"""Workers finish their step, and the last checkpoint goes to object storage."""
_SECONDS_KEPT = 24 * 3600
"""A finished job whose launcher is gone; else the launcher removes it at once."""
_SPARE_ROUNDS = 2
"""The launcher gives up first: it looks at the pods before they go, the operator does not."""
_STATES = ("Failed", "Succeeded", "Suspended", "Restarting", "Running", "Created")
"""In this order: the list of conditions has none."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is to be learned, from what, and on how many nodes."""

    name: str
    namespace: str
    image: str
    nodes: int
    min_nodes: int = 0
    """Above 0: goes on with so many when nodes are taken away."""
    processes_per_node: int
    settings: JobSettings
    data: str
    """COCO folder in object storage."""
    labels: str
    """Label store in object storage."""
    storage: str
    """s3://bucket/prefix that holds a folder for each job."""
    flags: tuple[str, ...]
    """Of `polarmask train`."""
    owner: Mapping[str, Any] | None = None
    """Reference to what the job is to go with, such as the workflow of the run."""

    @property
    def spec_sha256(self) -> str:
        """Hash of what is learned and how; the same when a step is repeated.

        Where the inputs lie may change then, and so may the commit, whose code has a hash of its
        own among the flags.
        """
        asked = asdict(self)
        for name in ("data", "labels", "owner"):
            del asked[name]
        asked["flags"] = [flag for flag in self.flags if not flag.startswith("code_commit=")]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    @property
    def most_restarts(self) -> int:
        """Restarts of all pods together; one crash restarts every pod."""
        return self.nodes * self.settings.max_restarts

    def manifest(self) -> dict[str, Any]:
        """Return the PyTorchJob."""
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": {**_LABELS},
            "annotations": {SPEC_ANNOTATION: self.spec_sha256},
        }
        if self.settings.queue:
            metadata["labels"]["kueue.x-k8s.io/queue-name"] = self.settings.queue
        if self.owner:
            metadata["ownerReferences"] = [dict(self.owner)]
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "PyTorchJob",
            "metadata": metadata,
            "spec": self._spec(),
        }

    def _spec(self) -> dict[str, Any]:
        settings = self.settings
        policy: dict[str, Any] = {
            "cleanPodPolicy": "Running",
            "backoffLimit": self.most_restarts + _SPARE_ROUNDS * self.nodes + 1,
            "activeDeadlineSeconds": round(settings.deadline_hours * 3600),
            "ttlSecondsAfterFinished": _SECONDS_KEPT,
        }
        if settings.queue:
            policy["suspend"] = True  # the queue lets it go
        spec: dict[str, Any] = {
            "nprocPerNode": str(self.processes_per_node),
            "runPolicy": policy,
        }
        if self.min_nodes:
            spec["elasticPolicy"] = {
                "minReplicas": self.min_nodes,
                "maxReplicas": self.nodes,
                "rdzvBackend": "c10d",
                "maxRestarts": settings.max_restarts,
            }
            spec["pytorchReplicaSpecs"] = {"Worker": self._replicas(self.nodes)}
            return spec
        spec["pytorchReplicaSpecs"] = {"Master": self._replicas(1)}
        if self.nodes > 1:
            spec["pytorchReplicaSpecs"]["Worker"] = self._replicas(self.nodes - 1)
        return spec

    def _replicas(self, number: int) -> dict[str, Any]:
        return {
            "replicas": number,
            # In place: what the node has fetched already stays.
            "restartPolicy": "OnFailure",
            "template": {
                "metadata": {
                    "labels": {**_LABELS},
                    "annotations": {"sidecar.istio.io/inject": "false"},
                },
                "spec": self._pod(),
            },
        }

    def _pod(self) -> dict[str, Any]:
        settings = self.settings
        pod: dict[str, Any] = {
            "containers": [self._container()],
            "volumes": [
                {"name": "workspace", "emptyDir": {"sizeLimit": settings.disk}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}},
            ],
            "terminationGracePeriodSeconds": _SECONDS_TO_STOP,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "fsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
        }
        wanted = {
            "serviceAccountName": settings.service_account,
            "nodeSelector": settings.node_selector,
            "tolerations": settings.tolerations,
            "priorityClassName": settings.priority_class,
            "imagePullSecrets": [{"name": settings.image_pull_secret}]
            if settings.image_pull_secret
            else [],
        }
        return pod | {name: value for name, value in wanted.items() if value}

    def _container(self) -> dict[str, Any]:
        settings = self.settings
        amounts = {
            "cpu": settings.cpu,
            "memory": settings.memory,
            "ephemeral-storage": settings.disk,
        }
        if settings.gpus_per_node:
            amounts[settings.gpu_resource] = str(settings.gpus_per_node)
        environment = {"HOME": _WORKSPACE, **settings.env}
        container: dict[str, Any] = {
            "name": CONTAINER,
            "image": self.image,
            "command": ["python", "-m", "polarmask_components.training.training_pod"],
            "args": [
                *("--data", self.data, "--labels", self.labels, "--storage", self.storage),
                *("--job", self.name, "--spec", self.spec_sha256, "--workspace", _WORKSPACE),
                *("--", *self.flags),
            ],
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "resources": {"requests": amounts, "limits": amounts},
            "volumeMounts": [
                {"name": "workspace", "mountPath": _WORKSPACE},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # a volume of the pod's own
                {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            ],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
        }
        if settings.secret:
            container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
        return container


_LABELS = {
    "app.kubernetes.io/name": "polarmask-training",
    "app.kubernetes.io/part-of": "polarmask",
}


def job_name(run_id: str) -> str:
    """Return the job's name for a run: the same each time the run is tried."""
    return f"polarmask-train-{hashlib.sha256(run_id.encode()).hexdigest()[:10]}"


def state_of(job: Mapping[str, Any]) -> tuple[str, str]:
    """Return a PyTorchJob's state and its message; both "" before a controller has seen it."""
    conditions = job.get("status", {}).get("conditions") or []
    true = {
        each["type"]: each.get("message", "") for each in conditions if each["status"] == "True"
    }
    return next(((state, true[state]) for state in _STATES if state in true), ("", ""))
