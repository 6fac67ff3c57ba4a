"""What is noted of a job's pods."""

import pytest

from kube.server import KubeServer
from polarmask_components.cluster.connection import connect
from polarmask_components.training.job_pods import JobPods
from training_jobs import training_job

JOB = training_job(name="a-job")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with KubeServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def put_pod(server, **status):
    labels = {"training.kubeflow.org/job-name": "a-job"}
    spec = {"containers": [{"name": "pytorch", "image": "trainer:1"}]}
    server.create("Pod", {"metadata": {"name": "a-job-master-0", "labels": labels}, "spec": spec})
    server.update("Pod", "a-job-master-0", lambda pod: pod["status"].update(status), status=True)


def test_an_eviction_counts_as_a_restart_and_names_the_parameter(server):
    pods = JobPods(connect(), JOB)
    for _ in range(2):
        message = "Usage of EmptyDir volume exceeds the limit"
        put_pod(server, phase="Failed", reason="Evicted", message=message)
        pods.look()
        server.delete("Pod", "a-job-master-0", grace=0)
    assert pods.restarts() == 2
    assert "Evicted: Usage of EmptyDir volume exceeds the limit; raise train_job.disk" in (
        pods.diagnosis()
    )


def test_a_job_without_pods_is_reported(server):
    pods = JobPods(connect(), JOB)
    pods.look()
    assert pods.diagnosis() == "it has no pods; is the training operator running?"


def test_warnings_about_others_are_left_out(server):
    pods = JobPods(connect(), JOB)
    for name, message in (("a-job", "exceeded quota: gpus"), ("another", "another cause")):
        event = {
            **{"metadata": {"name": f"event-{name}"}, "type": "Warning", "reason": "FailedCreate"},
            **{"message": message, "involvedObject": {"kind": "PyTorchJob", "name": name}},
        }
        server.create("Event", event)
    assert pods.diagnosis() == "event: FailedCreate a-job: exceeded quota: gpus"
