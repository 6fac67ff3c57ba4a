"""PyTorchJobs become pods, and the ends of pods become conditions, as with training-operator."""

import signal
import textwrap

import pytest

from kube.kubelet import Kubelet
from kube.operator import TrainingOperator
from kube.training_environment import environment_of


@pytest.fixture
def kubelet(server):
    with Kubelet(server, nodes={"a": {}, "b": {}}) as running:
        yield running


@pytest.fixture
def operator(server):
    with TrainingOperator(server) as running:
        yield running


def job_of(command, *, workers=0, processes="1", policy="OnFailure", run=None, elastic=None):
    """Return a PyTorchJob; a list is a command, a text one for the shell."""
    command = ["sh", "-c", command] if isinstance(command, str) else command
    container = {"name": "pytorch", "image": "trainer:1", "command": command}
    template = {"spec": {"containers": [container], "terminationGracePeriodSeconds": 5}}

    def replicas(number):
        return {"replicas": number, "restartPolicy": policy, "template": template}

    specs = {} if elastic else {"Master": replicas(1)}
    specs |= {"Worker": replicas(workers)} if workers else {}
    spec = {"nprocPerNode": processes, "pytorchReplicaSpecs": specs, "runPolicy": run or {}}
    return {
        "metadata": {"name": "a-job"},
        "spec": spec | ({"elasticPolicy": elastic} if elastic else {}),
    }


def wait_for(server, *conditions, timeout=20.0):
    server.wait_for(
        lambda: set(conditions) <= server.conditions("PyTorchJob", "a-job"), timeout=timeout
    )


def message_of(server, type_):
    conditions = server.get("PyTorchJob", "a-job")["status"]["conditions"]
    return next(each["message"] for each in conditions if each["type"] == type_)


def pods(server):
    return sorted(pod["metadata"]["name"] for pod in server.list("Pod"))


def test_the_variables_of_a_job_on_nodes():
    job = job_of("true", workers=2, processes="4")
    assert environment_of(job, "Worker", 1, 23456) == {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "a-job-master-0",
        "MASTER_PORT": "23456",
        "WORLD_SIZE": "12",
        "RANK": "2",  # of the node
        "PET_MASTER_ADDR": "a-job-master-0",
        "PET_MASTER_PORT": "23456",
        "PET_NODE_RANK": "2",
        "PET_NNODES": "3",
        "PET_NPROC_PER_NODE": "4",
    }


def test_the_variables_of_an_elastic_job():
    elastic = {"minReplicas": 1, "maxReplicas": 3, "maxRestarts": 5, "rdzvBackend": "c10d"}
    job = job_of("true", workers=2, elastic=elastic)
    assert environment_of(job, "Worker", 1, 23456) == {
        "PYTHONUNBUFFERED": "1",
        "PET_NPROC_PER_NODE": "1",
        "PET_NNODES": "1:3",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": "a-job-worker-0:23456",
        "PET_MAX_RESTARTS": "5",
    }


def test_a_job_succeeds_with_its_master_and_cleans_up(server, kubelet, operator):
    command = "test $RANK = 0 && exit 0; sleep 600"
    server.create("PyTorchJob", job_of(command, workers=1, run={"cleanPodPolicy": "Running"}))
    wait_for(server, "Created", "Succeeded")
    server.wait_for(lambda: pods(server) == ["a-job-master-0"])
    assert "Running" not in server.conditions("PyTorchJob", "a-job")
    assert server.get("PyTorchJob", "a-job")["status"]["completionTime"]


def test_an_elastic_job_succeeds_with_any_worker_and_the_others_are_deleted(
    server, kubelet, operator
):
    command = "case $HOSTNAME in *-1) exit 0;; esac; sleep 600"
    elastic, run = {"minReplicas": 1, "maxReplicas": 2}, {"cleanPodPolicy": "Running"}
    server.create("PyTorchJob", job_of(command, workers=2, elastic=elastic, run=run))
    wait_for(server, "Succeeded")
    server.wait_for(lambda: pods(server) == ["a-job-worker-1"])


def test_a_worker_whose_init_image_is_missing_waits_beside_a_running_master(server, operator):
    with Kubelet(server, images={"trainer:1": []}):
        server.create("PyTorchJob", job_of("sleep 600", workers=1))
        wait_for(server, "Running")

        def status():
            return server.get("Pod", "a-job-worker-0")["status"]

        def reasons(kind):
            return [
                each["state"].get("waiting", {}).get("reason") for each in status().get(kind, ())
            ]

        server.wait_for(lambda: reasons("initContainerStatuses") == ["ImagePullBackOff"])
        assert reasons("containerStatuses") == ["PodInitializing"]
        assert status()["phase"] == "Pending"


def test_pods_carry_labels_an_owner_and_a_service(server, operator):
    job = server.create("PyTorchJob", job_of("true", workers=1))
    server.wait_for(lambda: len(server.list("Pod")) == 2)
    (master,) = server.list("Pod", labels="training.kubeflow.org/job-role=master")
    assert master["metadata"]["labels"]["training.kubeflow.org/replica-index"] == "0"
    assert master["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert server.get("Service", "a-job-worker-0")["spec"]["clusterIP"] == "None"
    server.delete("PyTorchJob", "a-job")
    assert server.list("Pod") == server.list("Service") == []


def test_a_crash_is_restarted_in_place_until_the_limit(server, kubelet, operator):
    server.create("PyTorchJob", job_of("exit 3", run={"backoffLimit": 2}))
    wait_for(server, "Failed")
    assert "backoff limit" in message_of(server, "Failed")
    server.wait_for(lambda: pods(server) == [])


def test_a_job_whose_pods_are_never_restarted_fails_at_once(server, kubelet, operator):
    server.create("PyTorchJob", job_of("exit 3", policy="Never"))
    wait_for(server, "Failed")
    assert "1 Master replica(s) failed" in message_of(server, "Failed")
    assert pods(server) == ["a-job-master-0"]  # for a person to look at


@pytest.mark.parametrize(("code", "condition"), [(1, "Failed"), (137, "Restarting")])
def test_exit_codes_from_128_on_are_retried(server, kubelet, operator, code, condition):
    server.create("PyTorchJob", job_of(f"sleep 0.1; exit {code}", policy="ExitCode"))
    wait_for(server, condition)


def test_a_job_past_its_deadline_fails_even_while_it_waits(server, operator):
    with Kubelet(server, nodes={"no-gpu": {}}):
        job = job_of("true", run={"activeDeadlineSeconds": 1})
        container = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
        container["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": 1}}
        server.create("PyTorchJob", job)
        wait_for(server, "Failed")
        assert "active longer than specified deadline" in message_of(server, "Failed")
        assert pods(server) == []


def test_a_suspended_job_has_no_pods_until_it_is_resumed(server, kubelet, operator):
    server.create("PyTorchJob", job_of("sleep 600", run={"suspend": True}))
    wait_for(server, "Suspended")
    assert pods(server) == []

    def suspend(value):
        return lambda job: job["spec"]["runPolicy"].update(suspend=value)

    server.update("PyTorchJob", "a-job", suspend(False))
    wait_for(server, "Running")
    assert "Suspended" not in server.conditions("PyTorchJob", "a-job")
    server.update("PyTorchJob", "a-job", suspend(True))
    wait_for(server, "Suspended")
    server.wait_for(lambda: pods(server) == [])


def test_a_finished_job_is_deleted_after_its_ttl(server, kubelet, operator):
    server.create("PyTorchJob", job_of("true", run={"ttlSecondsAfterFinished": 1}))
    wait_for(server, "Succeeded")
    server.wait_for(lambda: server.find("PyTorchJob", "a-job") is None)
    assert pods(server) == []


def test_a_pod_of_a_lost_node_is_created_again_elsewhere(server, kubelet, operator):
    server.create("PyTorchJob", job_of("echo up; sleep 600"))
    wait_for(server, "Running")
    first = server.get("Pod", "a-job-master-0")
    kubelet.lose_node(first["spec"]["nodeName"])

    def moved():
        pod = server.find("Pod", "a-job-master-0") or first
        return pod["spec"].get("nodeName") not in (None, first["spec"]["nodeName"])

    server.wait_for(moved)
    wait_for(server, "Running")


def test_pods_that_are_not_admitted_are_reported_as_events(server, operator):
    job = job_of("true")
    template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
    template["spec"]["serviceAccountName"] = "nobody"
    server.create("PyTorchJob", job)
    server.wait_for(lambda: any("FailedCreatePod" in event for event in server.events()))
    assert server.conditions("PyTorchJob", "a-job") == set()  # not even Created
    server.create("ServiceAccount", {"metadata": {"name": "nobody"}})
    server.wait_for(lambda: pods(server) == ["a-job-master-0"])


RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def restricted_job(server, **options):
    """Create a job whose own containers are restricted, in a namespace that enforces it."""
    server.update("Namespace", "ml", lambda obj: obj["metadata"].update(labels=RESTRICTED))
    job = job_of("sleep 600", **options)
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        replica["template"]["spec"]["containers"][0]["securityContext"] = SECURITY
    server.create("PyTorchJob", job)


def test_a_worker_beside_a_master_is_not_restricted_as_the_operator_is_installed(server, operator):
    restricted_job(server, workers=1)
    server.wait_for(lambda: any("FailedCreatePod" in event for event in server.events()))
    assert pods(server) == ["a-job-master-0"]
    (event,) = [each for each in server.events() if "FailedCreatePod" in each]
    assert 'violates PodSecurity "restricted:latest"' in event
    assert 'container "init-pytorch" must set securityContext.allowPrivilegeEscalation' in event


def test_an_operator_with_a_restricted_template_makes_such_workers(server):
    with TrainingOperator(server, init_security=SECURITY):
        restricted_job(server, workers=1)
        server.wait_for(lambda: len(pods(server)) == 2)


def test_workers_without_a_master_are_restricted(server, operator):
    restricted_job(server, workers=2, elastic={"minReplicas": 2, "maxReplicas": 2})
    server.wait_for(lambda: len(pods(server)) == 2)


WORKER = """
    import os, sys, torch, torch.distributed as d
    d.init_process_group("gloo")
    rank = torch.tensor([d.get_rank()])
    d.all_reduce(rank)
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"]
    print(f"world={d.get_world_size()} sum={rank.item()} restart={restart}", flush=True)
    d.destroy_process_group()
"""


def torchrun(tmp_path, code):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(code))
    return ["torchrun", str(script)]


@pytest.mark.slow
def test_torchrun_on_two_nodes_computes_a_sum(server, kubelet, operator, tmp_path):
    server.create("PyTorchJob", job_of(torchrun(tmp_path, WORKER), workers=1))
    wait_for(server, "Succeeded", timeout=120)
    for name in ("master", "worker"):
        assert "world=2 sum=1 restart=0" in server.logs.text(f"a-job-{name}-0")


@pytest.mark.slow
def test_an_elastic_job_continues_after_a_worker_was_killed(server, kubelet, operator, tmp_path):
    code = WORKER + "    import time; time.sleep(60 if restart == '0' else 0)\n"
    elastic = {"minReplicas": 1, "maxReplicas": 2, "maxRestarts": 3}
    command = torchrun(tmp_path, code)
    server.create("PyTorchJob", job_of(command, workers=2, elastic=elastic))
    server.wait_for(lambda: "restart=0" in server.logs.text("a-job-worker-1"), timeout=120)
    kubelet.kill_pod("a-job-worker-1", signal.SIGKILL)
    wait_for(server, "Succeeded", timeout=180)
    assert "world=2" in server.logs.text("a-job-worker-0")
