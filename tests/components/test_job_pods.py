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


def put_pod(server, name="a-job-master-0", **status):
    labels = {"training.kubeflow.org/job-name": "a-job"}
    spec = {"containers": [{"name": "pytorch", "image": "trainer:1"}]}
    server.create("Pod", {"metadata": {"name": name, "labels": labels}, "spec": spec})
    server.update("Pod", name, lambda pod: pod["status"].update(status), status=True)


def put_stuck_pod(server, name):
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    status = {"name": "pytorch", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    put_pod(server, name, phase="Pending", containerStatuses=[{**status, "state": waiting}])


@pytest.mark.parametrize(
    ("stuck", "min_nodes", "is_the_end"),
    [(1, 2, False), (2, 2, True), (1, 3, True), (1, 0, True), (2, 1, False), (3, 1, True)],
)
def test_pods_that_cannot_start_end_an_elastic_job_only_below_its_smallest_number(
    server, caplog, stuck, min_nodes, is_the_end
):
    job = training_job(name="a-job", nodes=3, min_nodes=min_nodes)
    pods = JobPods(connect(), job)
    for number in range(3):
        if number < stuck:
            put_stuck_pod(server, f"a-job-worker-{number}")
        else:
            put_pod(server, f"a-job-worker-{number}", phase="Running")
    for _ in range(2):
        pods.look()
        why = pods.stuck(0.0)
    assert ("ImagePullBackOff: no such image; change train_job.image" in why) is is_the_end
    assert caplog.text.count("continues on the other nodes") == (0 if is_the_end else stuck)


def test_a_pod_that_went_away_is_not_waited_for(server):
    pods = JobPods(connect(), JOB)
    put_stuck_pod(server, "a-job-master-0")
    pods.look()
    assert pods.stuck(0.0)
    server.delete("Pod", "a-job-master-0", grace=0)
    pods.look()
    assert pods.stuck(0.0) == ""


@pytest.mark.parametrize(
    ("message", "setting"),
    [
        ('Usage of EmptyDir volume "workspace" exceeds the limit "50Gi". ', "train_job.disk"),
        ('Usage of EmptyDir volume "shm" exceeds the limit "8Gi". ', "train_job.shm"),
        ("Pod ephemeral local storage usage exceeds the total limit of containers 50Gi. ", "disk"),
        ('Container pytorch exceeded its local ephemeral storage limit "50Gi". ', "disk"),
        (
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi. "
            "Container pytorch was using 30Gi, request is 16Gi, has larger consumption of memory. ",
            "train_job.memory",
        ),
        (
            "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: "
            "900Mi. Container pytorch was using 3Gi, request is 50Gi. ",
            "train_job.node_selector",
        ),
        ("The node was low on resource: inodes. ", "train_job.node_selector"),
        ("The node was low on resource: pids. Threshold quantity: 100", "train_processes_per_node"),
        ("The node had condition: [DiskPressure]. ", "train_job.node_selector"),
        ("The node had condition: [MemoryPressure]. ", "train_job.memory"),
        ("The node had condition: [PIDPressure]. ", "train_processes_per_node"),
        ("Something new.", ""),
    ],
)
def test_an_eviction_names_the_setting_that_would_have_helped(server, message, setting):
    pods = JobPods(connect(), JOB)
    put_pod(server, phase="Failed", reason="Evicted", message=message)
    pods.look()
    line = pods.diagnosis().splitlines()[0]
    assert setting in line
    named = {each for each in ("memory", "shm", "disk") if f"train_job.{each}" in line}
    assert len(named) <= 1
    assert setting or not named


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
