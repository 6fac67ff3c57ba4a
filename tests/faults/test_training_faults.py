"""What goes wrong while a cluster trains: each test breaks one thing and states what happens then.

The pods run small scripts instead of the training; `test_training_pod_faults.py` breaks that.
"""

import sys
from dataclasses import dataclass, replace

import pytest

from polarmask_components.cluster import connect
from polarmask_components.errors import LaunchError
from polarmask_components.job_launcher import Pace, run_job
from polarmask_components.job_settings import JobSettings
from polarmask_components.job_storage import Result
from polarmask_components.pytorchjob import TrainingJob

PACE = Pace(look=0.1, stuck=1.0, removal=20.0, cleanup_patience=2.0)
RESULT = Result("", {}, {})


@dataclass(frozen=True, kw_only=True)
class ScriptJob(TrainingJob):
    """A job whose pods run a script."""

    script: str = ""

    def manifest(self):
        manifest = super().manifest()
        for replica in manifest["spec"]["pytorchReplicaSpecs"].values():
            (container,) = replica["template"]["spec"]["containers"]
            container["command"] = ["python", "-c", self.script]
            container["args"] = []
        return manifest


class Storage:
    """Holds the result of a job once its script has made a file."""

    where = "s3://bucket/training/job"

    def __init__(self, job, file):
        self._job = job
        self._file = file

    def result(self):
        return Result(self._job.spec_sha256, {}, {}) if self._file.exists() else None


def job_of(script, **changes):
    settings = JobSettings(secret="", cpu="100m", memory="64Mi", **changes.pop("settings", {}))
    values = {
        "name": "polarmask-train-0123456789",
        "namespace": "ml",
        "image": "trainer:1",
        "nodes": 2,
        "processes_per_node": 1,
        "settings": settings,
        "data": "s3://bucket/data",
        "labels": "s3://bucket/labels",
        "storage": "s3://bucket/training",
        "flags": (),
    }
    return ScriptJob(script=script, **values | changes)


@pytest.fixture
def launch(cluster, tmp_path):
    """Run a job to its end, its result being the file `result`."""

    def run(job, pace=PACE):
        return run_job(job, Storage(job, tmp_path / "result"), connect(), pace=pace)

    return run


@pytest.fixture
def good(tmp_path):
    """A script that trains and leaves its result."""
    return f"print('step=1', flush=True); open({str(tmp_path / 'result')!r}, 'w')"


def test_a_good_job(launch, good, capfd):
    launch(job_of(good))
    assert "step=1" in capfd.readouterr().out
