"""The parameters of the pipeline that preflight checks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polarmask_components.deploy.target import CLUSTER
from polarmask_components.parameters.training_request import TrainingRequest


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A pipeline run that is about to start."""

    training_request: TrainingRequest
    registry: str
    """Folder or s3://bucket/prefix."""
    repository: str = ""
    revision: str = ""
    """Of the data; looked at for runs on a cluster only."""
    target: str = ""
    """kubernetes://NAMESPACE/NAME of the Deployment, or a folder for the pod of this machine."""
    model_name: str = "polarmask"
    floor_ap: float = 0.0
    trial: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrialSettings`."""

    @property
    def deploys_to_cluster(self) -> bool:
        """Whether the model is served in a cluster."""
        return self.target.startswith(CLUSTER)
