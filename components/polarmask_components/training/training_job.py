"""A training job as a value: what its pods run and need, whatever kind of job starts them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polarmask_components.parameters.training_request import TrainingRequest

SPEC_ANNOTATION = "polarmask.io/spec-sha256"
LABELS = {
    "app.kubernetes.io/name": "polarmask-training",
    "app.kubernetes.io/part-of": "polarmask",
}

_WORKSPACE = "/workspace"
_USER = 1000
_SECONDS_TO_STOP = 120
"""Workers finish their step, and the last checkpoint goes to object storage."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training on a cluster."""

    name: str
    namespace: str
    image: str
    request: TrainingRequest
    flags: tuple[str, ...]
    """Of `polarmask train`."""
    owner: Mapping[str, Any] | None = None
    """Reference to the object that the job is deleted with, such as the workflow of the run."""

    @property
    def spec_sha256(self) -> str:
        """Hash of what is learned and how; the same when a step is repeated.

        The commit may change then; its code has a hash of its own among the flags.
        """
        spec = asdict(self)
        del spec["owner"]
        spec["flags"] = [flag for flag in self.flags if not flag.startswith("code_commit=")]
        return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()

    @property
    def max_restarts(self) -> int:
        """Restarts of all pods together; one crash restarts every pod."""
        return self.request.nodes * self.request.job.max_restarts

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the job's object on the cluster."""
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "labels": {**LABELS},
            "annotations": {SPEC_ANNOTATION: self.spec_sha256},
        }
        if self.request.job.queue:
            metadata["labels"]["kueue.x-k8s.io/queue-name"] = self.request.job.queue
        if self.owner:
            metadata["ownerReferences"] = [dict(self.owner)]
        return metadata

    def pod_template(self, container: str) -> dict[str, Any]:
        """Return the template of a pod; all pods are equal.

        Args:
            container: Name of the container that trains.
        """
        return {
            "metadata": {
                "labels": {**LABELS},
                "annotations": {"sidecar.istio.io/inject": "false"},
            },
            "spec": self._pod({"name": container, **self.container()}),
        }

    def _pod(self, container: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.request.job
        pod: dict[str, Any] = {
            "containers": [container],
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
        secret = settings.image_pull_secret
        optional = {
            "serviceAccountName": settings.service_account,
            "nodeSelector": settings.node_selector,
            "tolerations": settings.tolerations,
            "priorityClassName": settings.priority_class,
            "imagePullSecrets": [{"name": secret}] if secret else [],
        }
        return pod | {name: value for name, value in optional.items() if value}

    def container(self) -> dict[str, Any]:
        """Return the container that trains, without its name."""
        settings = self.request.job
        amounts = settings.amounts()
        environment = {"HOME": _WORKSPACE, **settings.env}
        container: dict[str, Any] = {
            "image": self.image,
            "command": ["python", "-m", "polarmask_components.training.training_pod"],
            "args": [
                *("--storage", self.request.storage, "--job", self.name),
                *("--spec", self.spec_sha256, "--workspace", _WORKSPACE, "--", *self.flags),
            ],
            "env": [{"name": name, "value": value} for name, value in environment.items()],
            "resources": {"requests": amounts, "limits": amounts},
            "volumeMounts": [
                {"name": "workspace", "mountPath": _WORKSPACE},
                {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # a volume of the pod's own
                {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  # a volume, too
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
