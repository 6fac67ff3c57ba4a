"""A training job as a TrainJob: its manifest, its state, and its way through a cluster."""

from pathlib import Path

import pytest
import yaml

from kube.kubelet import Kubelet
from kube.server import KubeServer
from kube.trainer import Trainer
from polarmask.errors import ConfigError
from polarmask_components.cluster.connection import connect
from polarmask_components.errors import ClusterError, LaunchError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.parameters.train_on import TRAINJOB
from polarmask_components.training.job_launcher import Pace, run_job
from polarmask_components.training.trainjob import manifest_of, state_of
from training_jobs import ScriptJob, Storage, training_job, training_request

RUNTIME = Path(__file__).parents[2] / "k8s/components/trainer/runtime.yaml"
EVERYTHING = JobSettings(
    image_pull_secret="registry",
    gpus_per_node=2,
    service_account="trainer",
    node_selector={"gpu": "h100"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    runtime="of-the-team",
    queue="team",
    env={"NCCL_DEBUG": "INFO", "AWS_REGION": "eu-central-1"},
    deadline_hours=1,
)


def spec(**changes):
    return manifest_of(training_job(on=TRAINJOB, **changes))["spec"]


@pytest.mark.parametrize("changes", [{}, {"nodes": 3, "job": EVERYTHING}], ids=["one", "all"])
def test_an_api_server_takes_it_and_its_runtime(changes):
    made = manifest_of(training_job(on=TRAINJOB, **changes))
    runtime = yaml.safe_load(RUNTIME.read_text())
    runtime["metadata"]["name"] = made["spec"]["runtimeRef"]["name"]
    with KubeServer() as server:
        assert server.create("TrainingRuntime", runtime)
        assert server.create("TrainJob", made)


def test_settings_reach_the_job():
    made = spec(nodes=3, job=EVERYTHING)
    assert made["runtimeRef"]["name"] == "of-the-team"
    trainer = made["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 2)
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "2"
    assert made["activeDeadlineSeconds"] == 3600
    assert made["suspend"] is True
    assert "suspend" not in spec()
    (patch,) = made["runtimePatches"]
    (of_job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod = of_job["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "trainer"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_the_entries_of_the_secret_are_variables_unless_they_are_set_otherwise():
    found = {each["name"]: each for each in spec(job=EVERYTHING)["trainer"]["env"]}
    assert found["AWS_REGION"] == {"name": "AWS_REGION", "value": "eu-central-1"}

    def entry(name):
        return found[name]["valueFrom"]["secretKeyRef"]

    assert entry("AWS_ACCESS_KEY_ID") == {
        **{"name": "polarmask-s3", "key": "AWS_ACCESS_KEY_ID", "optional": False}
    }
    assert entry("AWS_ENDPOINT_URL")["optional"] is True
    without = spec(job=JobSettings(secret=""))["trainer"]["env"]
    assert [each["name"] for each in without] == ["HOME"]


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"nodes": 2, "min_nodes": 1}, "train_min_nodes is 1: .*TrainJob is fixed"),
        ({"job": JobSettings(priority_class="high")}, r"train_job\.priority_class.*runtime"),
    ],
)
def test_what_a_trainjob_has_no_field_for_is_named(changes, expected_text):
    with pytest.raises(ConfigError, match=expected_text):
        training_request(on=TRAINJOB, **changes)


def condition(type_, status="True"):
    return {"type": type_, "status": status, "message": type_}


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({}, ""),
        ({"conditions": [condition("Suspended")]}, "Suspended"),
        ({"conditions": [condition("Suspended", "False")]}, ""),
        ({"jobsStatus": [{"name": "node", "ready": 0, "active": 1}]}, "Created"),
        ({"jobsStatus": [{"name": "node", "ready": 1, "active": 1}]}, "Running"),
        ({"conditions": [condition("Suspended", "False"), condition("Complete")]}, "Succeeded"),
        ({"conditions": [condition("Failed")], "jobsStatus": [{"ready": 1}]}, "Failed"),
    ],
)
def test_the_state_is_read_from_conditions_and_jobs(status, state):
    assert state_of({"status": status})[0] == state
    assert state_of({}) == ("", "")


# on a cluster


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A cluster with Kubeflow Trainer, and without the training operator."""
    nodes = {"a": {}, "b": {}}
    with KubeServer() as server, Kubelet(server, nodes=nodes), Trainer(server):
        server.delete("CustomResourceDefinition", "pytorchjobs.kubeflow.org", "")
        server.create("TrainingRuntime", yaml.safe_load(RUNTIME.read_text()))
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        yield server
        server.wait_for(lambda: server.list("Pod") == [])
        assert server.store.list("TrainJob") == []


@pytest.fixture
def launch(server, tmp_path):
    """Run a script on two nodes to its end, its result being the file `result`."""

    def run(script, **settings):
        small = {"secret": "", "cpu": "100m", "memory": "64Mi"} | settings
        fields = {"on": TRAINJOB, "nodes": 2, "job": JobSettings(**small)}
        job = training_job(ScriptJob, script=script, **fields)
        pace = Pace(look=0.1, stuck=1.0, removal=20.0, cleanup_deadline=2.0)
        return run_job(job, Storage(job, tmp_path / "result"), connect(), pace=pace)

    return run


def result_in(tmp_path):
    """Return a statement that leaves the result; the path of the file is no path in a pod."""
    path = str(tmp_path / "result").encode().hex()
    return f"open(bytes.fromhex({path!r}).decode(), 'w').close()"


RENDEZVOUS = """
import os
names = "NODE_RANK", "NNODES", "NPROC_PER_NODE"
print(*(f"{name}={os.environ['PET_' + name]}" for name in names))
"""


def test_a_job_trains_and_the_log_of_its_first_node_is_shown(launch, tmp_path, capfd):
    assert launch(RENDEZVOUS + result_in(tmp_path))
    lines = capfd.readouterr().out.splitlines()
    assert lines == ["NODE_RANK=0 NNODES=2 NPROC_PER_NODE=1"]


def test_a_job_that_keeps_failing_ends_with_the_last_lines_of_its_pods(launch):
    with pytest.raises(LaunchError) as caught:
        launch("import sys; sys.exit('no such file')", max_restarts=0)
    message = str(caught.value)
    assert "TrainJob ml/polarmask-train-0123456789 failed again after 0 restarts" in message
    assert "| no such file" in message


def test_refused_pods_are_reported_with_the_reason(launch):
    with pytest.raises(LaunchError, match=r"its pods are refused: .*service account ml/nobody"):
        launch("pass", service_account="nobody")


def test_a_missing_runtime_is_named(launch):
    with pytest.raises(ClusterError, match=r"denied .*must be created before the TrainJob is .*d$"):
        launch("pass", runtime="mine")


def test_a_cluster_without_trainer_is_named(launch, server):
    server.delete("CustomResourceDefinition", "trainjobs.trainer.kubeflow.org", "")
    with pytest.raises(LaunchError, match=r"knows no TrainJob .* install Kubeflow Trainer 2\.2"):
        launch("pass")
