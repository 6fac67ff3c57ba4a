"""The kinds of training jobs: one module each, all with the same functions.

The launcher, its log and its diagnosis ask a kind; they do not know which one it is.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from polarmask_components.parameters.train_on import PYTORCHJOB, TRAINJOB
from polarmask_components.training import pytorchjob, trainjob
from polarmask_components.training.job_identity import JobResource
from polarmask_components.training.training_job import TrainingJob


class JobKind(Protocol):
    """What a module of a kind has."""

    RESOURCE: JobResource
    CONTAINER: str
    """Name that the controller expects of the container that trains."""

    def manifest_of(self, job: TrainingJob) -> dict[str, Any]:
        """Return the job's object."""

    def state_of(self, job: Mapping[str, Any]) -> tuple[str, str]:
        """Return an object's state and its message; both "" before a controller has seen it.

        States: Created, Running, Restarting, Suspended, Succeeded, Failed.
        """

    def pods_of(self, job: TrainingJob) -> str:
        """Return the label selector of the job's pods."""

    def first_pod_of(self, job: TrainingJob) -> str:
        """Return the label selector of the pod of the first node."""

    def creators_of(self, job: TrainingJob) -> tuple[str, ...]:
        """Return the names of the objects whose events say that a pod is refused."""


JOB_KINDS: Mapping[str, JobKind] = {PYTORCHJOB: pytorchjob, TRAINJOB: trainjob}
"""By the value of `train_on`."""


def kind_of(job: TrainingJob) -> JobKind:
    """Return the kind of a job."""
    return JOB_KINDS[job.request.on]
