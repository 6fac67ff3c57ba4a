"""TrainJobs become pods, and the ends of pods become conditions, as with Kubeflow Trainer."""

import pytest

from kube.errors import ApiError
from kube.kubelet import Kubelet
from kube.test_operator import WORKER, torchrun
from kube.trainer import Trainer


@pytest.fixture
def kubelet(server):
    with Kubelet(server, nodes={"a": {}, "b": {}}) as running:
        yield running


@pytest.fixture
def trainer(server):
    with Trainer(server) as running:
        yield running


def runtime_of(limit=6):
    container = {"name": "node"}
    pod = {"restartPolicy": "OnFailure", "containers": [container]}
    template = {"spec": {"backoffLimit": limit, "template": {"spec": pod}}}
    jobs = [{"name": "node", "template": template}]
    template = {"spec": {"replicatedJobs": jobs}}
    return {
        "metadata": {"name": "a-runtime"},
        "spec": {"mlPolicy": {"torch": {}}, "template": template},
    }


def job_of(command, nodes=2, **spec):
    command = ["sh", "-c", command] if isinstance(command, str) else command
    trainer = {"image": "trainer:1", "command": command, "numNodes": nodes, "numProcPerNode": 1}
    ref = {"kind": "TrainingRuntime", "name": "a-runtime"}
    trainer["resourcesPerNode"] = {"limits": {"cpu": "100m"}}
    return {
        "metadata": {"name": "a-job"},
        "spec": {"runtimeRef": ref, "trainer": trainer, **spec},
    }


def run(server, job, limit=6):
    server.create("TrainingRuntime", runtime_of(limit))
    server.create("TrainJob", job)


def wait_for(server, condition):
    server.wait_for(lambda: condition in server.conditions("TrainJob", "a-job"))


def jobs_status(server):
    (found,) = server.get("TrainJob", "a-job").get("status", {}).get("jobsStatus", [{}])
    return found


def test_a_job_is_complete_when_all_its_nodes_are(server, kubelet, trainer):
    run(server, job_of("test $PET_NODE_RANK = 0 && exit 0; sleep 0.5"))
    server.wait_for(lambda: jobs_status(server).get("ready") == 1)
    wait_for(server, "Complete")
    assert jobs_status(server)["succeeded"] == 1
    server.delete("TrainJob", "a-job")
    assert server.list("Pod") == server.list("Service") == []


def test_a_job_fails_after_its_restarts_and_its_running_pods_go(server, kubelet, trainer):
    run(server, job_of("test $PET_NODE_RANK = 0 && exit 3; sleep 600"), limit=1)
    wait_for(server, "Failed")
    assert "jobset failed" in server.get("TrainJob", "a-job")["status"]["conditions"][0]["message"]
    server.wait_for(lambda: server.list("Pod") == [])


def test_a_suspended_job_has_no_pods_until_it_is_resumed(server, kubelet, trainer):
    run(server, job_of("sleep 600", suspend=True))
    wait_for(server, "Suspended")
    assert server.list("Pod") == []
    server.update("TrainJob", "a-job", lambda job: job["spec"].update(suspend=False))
    server.wait_for(lambda: jobs_status(server).get("ready") == 1)
    assert server.conditions("TrainJob", "a-job") == set()


def test_a_job_past_its_deadline_fails(server, kubelet, trainer):
    run(server, job_of("sleep 600", activeDeadlineSeconds=1))
    wait_for(server, "Failed")
    (condition,) = server.get("TrainJob", "a-job")["status"]["conditions"]
    assert (condition["reason"], condition["message"]) == (
        *("DeadlineExceeded", "TrainJob exceeded its active deadline"),
    )
    server.wait_for(lambda: server.list("Pod") == [])


def test_a_lost_node_s_pod_is_made_again_under_another_name(server, kubelet, trainer):
    run(server, job_of("sleep 600", nodes=1))
    server.wait_for(lambda: jobs_status(server).get("ready") == 1)
    (first,) = server.list("Pod")
    kubelet.lose_node(first["spec"]["nodeName"])

    def replaced():
        alive = [each for each in server.list("Pod") if each["status"]["phase"] == "Running"]
        return [each for each in alive if each["metadata"]["name"] != first["metadata"]["name"]]

    server.wait_for(replaced)


def test_pods_that_are_not_admitted_are_events_of_the_job_below(server, trainer):
    pod = {"serviceAccountName": "nobody"}
    patch = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    spec = {"template": {"spec": {"replicatedJobs": [patch]}}}
    patches = [{"manager": "example.org/test", "trainingRuntimeSpec": spec}]
    run(server, job_of("true", runtimePatches=patches))
    server.wait_for(lambda: any("FailedCreate" in event for event in server.events()))
    (event,) = {each["involvedObject"]["name"] for each in server.list("Event")}
    assert event == "a-job-node-0"
    server.wait_for(lambda: jobs_status(server).get("active") == 0)


def test_a_job_without_its_runtime_is_refused(server):
    with pytest.raises(ApiError, match="must be created before the TrainJob is created"):
        server.create("TrainJob", job_of("true"))


@pytest.mark.parametrize(
    ("change", "expected_text"),
    [
        ({"podTemplateOverrides": []}, "spec.podTemplateOverrides: unknown field"),
        ({"trainer": {"envFrom": []}}, "spec.trainer.envFrom: unknown field"),
        ({"trainer": {"numProcPerNode": "auto"}}, "numProcPerNode: must be of type int"),
        ({"activeDeadlineSeconds": "1h"}, "activeDeadlineSeconds: must be of type int"),
        ({"runtimePatches": [{"manager": "us"}]}, "must be a domain-prefixed path"),
    ],
)
def test_fields_that_no_trainjob_has_are_refused(server, change, expected_text):
    with pytest.raises(ApiError, match=expected_text):
        server.create("TrainJob", job_of("true", **change))


@pytest.mark.slow
def test_torchrun_on_two_nodes_computes_a_sum(server, kubelet, trainer, tmp_path):
    run(server, job_of(torchrun(tmp_path, WORKER)))
    server.wait_for(lambda: "Complete" in server.conditions("TrainJob", "a-job"), timeout=120)
    for pod in server.list("Pod"):
        assert "world=2 sum=1 restart=0" in server.logs.text(pod["metadata"]["name"])
