"""The pods of a training job: the fields of the pipeline's parameter `train_job`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from polarmask.config.validation import read_settings
from polarmask_components.cluster.address import job_namespace

_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?")


def is_quantity(text: str) -> bool:
    """Return whether a text is an amount as Kubernetes writes it, such as 500m or 16Gi."""
    return _QUANTITY.fullmatch(text) is not None


def _quantity(value: object) -> object:
    """Read an amount as Kubernetes writes it; Kubeflow makes 4.0 of 4."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value)
    if not is_quantity(text):
        raise ValueError("is no amount; write for example 4, 500m or 16Gi")
    return text


Quantity = Annotated[str, BeforeValidator(_quantity)]


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """The pods of a training job; one pod a node."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    namespace: str = ""
    """Empty: that of the server in `deploy_target`, or of the step itself if that is no server."""
    image: str = ""
    """Empty: that of the step itself."""
    image_pull_secret: str = ""
    """Name of a Secret that opens the image's registry; empty for none."""
    gpu_resource: str = "nvidia.com/gpu"
    gpus_per_node: int = 0
    cpu: Quantity = "4"
    memory: Quantity = "16Gi"
    shm: Quantity = "8Gi"
    """Of /dev/shm, where loader processes hand batches over; counts as memory."""
    disk: Quantity = "50Gi"
    """For data, labels and run folder on the node."""
    secret: str = "polarmask-s3"  # noqa: S105  # its name only
    """Name of a Secret whose keys become environment variables: endpoint and credentials of the
    object storage. Empty for none."""
    service_account: str = ""
    """Empty: the namespace's default. The pods never call Kubernetes."""
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    priority_class: str = ""
    """For a TrainJob its runtime decides."""
    runtime: str = "polarmask-training"
    """Of a TrainJob: name of a TrainingRuntime in the job's namespace, k8s/components/trainer."""
    queue: str = ""
    """LocalQueue of Kueue that admits the job; empty for none."""
    env: dict[str, str] = field(default_factory=dict)
    max_restarts: int = 3
    """For each node, before the job fails."""
    deadline_hours: float = 72
    """From submission to end, waiting for nodes included."""
    start_timeout_minutes: float = 60
    """How long the pods may wait for nodes and images."""

    def __post_init__(self) -> None:
        """Reject jobs that could never run."""
        for name in ("gpus_per_node", "max_restarts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must be 0 or above")
        for name in ("deadline_hours", "start_timeout_minutes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: must be above 0")

    def amounts(self) -> dict[str, str]:
        """Return what each pod requests, by the name of the resource."""
        amounts = {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": self.disk}
        if self.gpus_per_node:
            amounts[self.gpu_resource] = str(self.gpus_per_node)
        return amounts


def read_job_settings(plain: Mapping[str, Any], *, target: str = "") -> JobSettings:
    """Read the pipeline's parameter `train_job`.

    Args:
        plain: The parameter.
        target: The parameter `deploy_target`, whose namespace is the job's unless one is given.

    Raises:
        ConfigError: Names the field that can't work, or the known ones if there is no such field.
    """
    settings = read_settings(JobSettings, plain, name="train_job")
    return replace(settings, namespace=job_namespace(settings.namespace, target))
