"""The parameters of the pipeline that preflight checks."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from polarmask_components.cluster.address import CLUSTER, split_target
from polarmask_components.errors import StorageError
from polarmask_components.parameters.step_resources import StepResources
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.storage.address import split_uri


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A pipeline run that is about to start."""

    training_request: TrainingRequest
    registry: str
    """Folder or s3://bucket/prefix."""
    initial: str = ""
    """Model to start from: `champion`, an address, a path, or empty."""
    repository: str = ""
    revision: str = ""
    """Of the data; looked at for runs on a cluster only."""
    target: str = ""
    """kubernetes://NAMESPACE/NAME of the Deployment, or a folder for the pod of this machine."""
    model_name: str = "polarmask"
    floor_ap: float = 0.0
    max_problems: float = 0.02
    """Largest share of images, and of objects, that may be left out."""
    trial: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrialSettings`."""
    label_pods: int = 1
    resources: StepResources = field(default_factory=StepResources)
    webhook: str = ""
    storage_secret: str = ""
    """Secret that gives steps in a cluster the storage's address and keys."""

    @property
    def deploys_to_cluster(self) -> bool:
        """Whether the model is served in a cluster."""
        return self.target.startswith(CLUSTER)

    def problems_of_places(self) -> Iterator[str]:
        """Yield which places a run on a cluster can't use, whatever is there."""
        if self.deploys_to_cluster and not split_target(self.target)[1]:
            yield f"deploy_target {self.target!r} is no Deployment; give {CLUSTER}NAMESPACE/NAME"
        shared = {"deploy_registry": self.registry} if self.deploys_to_cluster else {}
        if self.training_request.on_cluster:
            shared["train_storage"] = self.training_request.storage
        for parameter, uri in shared.items():
            try:
                split_uri(uri)
            except StorageError as error:
                yield f"{parameter}: {error}; pods share no disk"
