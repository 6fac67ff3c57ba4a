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


def put_event(server, message, reason="FailedCreatePod", name="a-job", number=0):
    about = {"kind": "PyTorchJob", "name": name}
    event = {"metadata": {"name": f"event-{name}-{number}"}, "type": "Warning", "reason": reason}
    event |= {"message": message, "involvedObject": about}
    server.create("Event", event | {"lastTimestamp": f"2026-01-01T00:00:0{number}Z"})


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
    assert pods.diagnosis() == "it has no pods; is training-operator v1 running?"


def test_warnings_about_others_are_left_out(server):
    pods = JobPods(connect(), JOB)
    for name, message in (("a-job", "exceeded quota: gpus"), ("another", "another cause")):
        put_event(server, message, name=name)
    assert pods.diagnosis() == "event: FailedCreatePod a-job: exceeded quota: gpus"


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest": '
            'allowPrivilegeEscalation != false (container "init-pytorch" must set '
            "securityContext.allowPrivilegeEscalation=false)",
            "--pytorch-init-container-template-file",
        ),
        ("error looking up service account ml/x: not found", "train_job.service_account"),
        ("no PriorityClass with name x was found", "train_job.priority_class"),
        ("failed quota: q: must specify limits.cpu for: pytorch", "of train_job"),
        ("maximum cpu usage per Container is 2, but limit is 4", "of train_job"),
        ('admission webhook "x" denied the request: no bad pods', "no bad pods"),
    ],
)
def test_a_refused_pod_is_no_wait_but_an_error_that_says_what_to_change(server, message, advice):
    pods = JobPods(connect(), JOB)
    pods.look()
    assert pods.stuck(0.0) == ""
    put_event(server, f"Error creating: {message}")
    pods.look()
    assert pods.stuck(0.0).startswith("its pods are refused: FailedCreatePod: Error creating: ")
    assert advice in pods.stuck(0.0)
    assert pods.stuck(60.0) == ""
    put_pod(server)
    pods.look()
    assert pods.stuck(0.0) == ""


def test_a_full_quota_is_waited_for_and_said(server, caplog):
    pods = JobPods(connect(), JOB)
    put_event(server, "Error creating: old cause", number=1)
    put_event(server, "Error creating: exceeded quota: gpus", number=2)
    pods.look()
    assert pods.stuck(0.0) == ""
    assert "exceeded quota: gpus; wait for other jobs" in pods.why_waiting()
    assert "exceeded quota: gpus" in caplog.text


def test_a_refusal_of_an_earlier_try_of_this_name_says_nothing_about_this_one(server):
    pods = JobPods(connect(), JOB)
    put_event(server, "Error creating: a webhook says no", number=1)
    pods.look(created="2026-01-01T00:00:02Z")
    assert pods.stuck(0.0) == pods.why_waiting() == ""
    assert "webhook" not in pods.diagnosis()
    put_event(server, "Error creating: a webhook still says no", number=2)
    pods.look(created="2026-01-01T00:00:02Z")
    assert "still says no" in pods.stuck(0.0)


def test_a_refused_service_is_found_though_the_pods_run(server):
    pods = JobPods(connect(), JOB)
    put_event(server, "Error creating: services is forbidden", reason="FailedCreateService")
    put_pod(server, phase="Running")
    pods.look(has_state=False)
    assert "services is forbidden" in pods.stuck(0.0)


@pytest.mark.parametrize(("missing", "is_the_end"), [(1, False), (2, True)])
def test_an_elastic_job_continues_without_pods_that_are_refused(server, missing, is_the_end):
    pods = JobPods(connect(), training_job(name="a-job", nodes=3, min_nodes=2))
    for number in range(3 - missing):
        put_pod(server, f"a-job-worker-{number}", phase="Running")
    put_event(server, "Error creating: a webhook says no")
    pods.look()
    assert bool(pods.stuck(0.0)) is is_the_end


def container_status(name, **state):
    status = {"name": name, "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    return status | {"state": state}


INITIALISING = container_status("pytorch", waiting={"reason": "PodInitializing"})


@pytest.mark.parametrize(
    ("container", "advice"),
    [
        ("init-pytorch", "--pytorch-init-container-image"),
        ("istio-init", "what adds this container"),
    ],
)
def test_a_container_of_others_that_cannot_start_is_named(server, container, advice):
    pods = JobPods(connect(), JOB)
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling"}
    init = [container_status(container, waiting=waiting)]
    put_pod(server, phase="Pending", initContainerStatuses=init, containerStatuses=[INITIALISING])
    pods.look()
    assert f"container {container}: ImagePullBackOff: Back-off pulling; " in pods.stuck(0.0)
    assert advice in pods.stuck(0.0)
    assert "train_job.image" not in pods.stuck(0.0)


def test_the_end_of_an_init_container_rules_out_no_retry(server):
    pods = JobPods(connect(), JOB)
    ended = {"exitCode": 2, "reason": "Error", "finishedAt": "2026-01-01T00:00:00Z"}
    init = [container_status("init-pytorch", terminated=ended)]
    put_pod(server, phase="Pending", initContainerStatuses=init, containerStatuses=[INITIALISING])
    pods.look()
    assert pods.refusal() == ""
    assert "container init-pytorch, ended with exit code 2" in pods.diagnosis()


@pytest.mark.parametrize(
    ("min_nodes", "begun", "holds"), [(0, 1, False), (0, 2, True), (1, 1, True)]
)
def test_training_has_started_when_enough_nodes_train(server, min_nodes, begun, holds):
    pods = JobPods(connect(), training_job(name="a-job", nodes=2, min_nodes=min_nodes))
    running = container_status("pytorch", running={"startedAt": "2026-01-01T00:00:00Z"})
    for number in range(2):
        status = running if number < begun else INITIALISING
        put_pod(server, f"a-job-worker-{number}", phase="Running", containerStatuses=[status])
    pods.look()
    assert pods.have_started() is holds
