"""Training requests and jobs for tests."""

from dataclasses import dataclass
from math import lcm

from polarmask_components.parameters.train_on import PYTORCHJOB
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.job_storage import Result
from polarmask_components.training.training_job import TrainingJob


def training_request(**changes):
    """Return a request to train on a cluster, with a batch that divides among any of its nodes."""
    wanted = {"on": PYTORCHJOB, "preset": "tiny", "storage": "s3://bucket/training"} | changes
    nodes, job = wanted.get("nodes", 1), wanted.get("job")
    processes = wanted.get("processes_per_node") or (job.gpus_per_node if job else 0) or 1
    sizes = range(wanted.get("min_nodes") or nodes, nodes + 1)
    batch = f"optim.batch_size={processes * lcm(*sizes)}"
    return TrainingRequest(**{"overrides": batch} | wanted)


_REQUEST_FIELDS = {"on", "nodes", "min_nodes", "processes_per_node", "storage", "job", "overrides"}


def training_job(kind=TrainingJob, **changes):
    """Return a job; changes are fields of the job or of its request."""
    request = {name: changes.pop(name) for name in _REQUEST_FIELDS & set(changes)}
    fields = {
        "name": "polarmask-train-0123456789",
        "namespace": "ml",
        "image": "trainer:1",
        "request": training_request(**request),
        "flags": ("--preset", "tiny"),
    }
    return kind(**fields | changes)


@dataclass(frozen=True, kw_only=True)
class ScriptJob(TrainingJob):
    """A job whose pods run a script."""

    script: str = ""

    def container(self):
        return super().container() | {"command": ["python", "-c", self.script], "args": []}


class Storage:
    """Holds the result of a job once its script has made a file."""

    where = "s3://bucket/training/job"

    def __init__(self, job, file):
        self._job = job
        self._file = file

    def result(self):
        return Result(self._job.spec_sha256, {}, {}) if self._file.exists() else None
