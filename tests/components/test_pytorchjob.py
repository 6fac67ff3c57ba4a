"""A training job as a manifest; no cluster."""

from dataclasses import replace

import pytest

from kube.server import KubeServer
from polarmask.errors import ConfigError
from polarmask_components.parameters.job_settings import JobSettings, read_job_settings
from polarmask_components.parameters.training_request import TrainingRequest
from polarmask_components.training.job_identity import job_name
from polarmask_components.training.pytorchjob import manifest_of, state_of
from training_jobs import training_job, training_request

JOB = training_job(nodes=3, processes_per_node=2)
EVERYTHING = JobSettings(
    namespace="ml",
    image="trainer:2",
    image_pull_secret="registry",
    gpus_per_node=2,
    service_account="trainer",
    node_selector={"gpu": "h100"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    priority_class="high",
    queue="team",
    env={"NCCL_DEBUG": "INFO"},
)


def job_like(**changes):
    return training_job(**{"nodes": 3, "processes_per_node": 2} | changes)


def spec(job=JOB):
    return manifest_of(job)["spec"]


def pod(job=JOB, kind="Master"):
    return spec(job)["pytorchReplicaSpecs"][kind]["template"]["spec"]


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(JOB, id="three-nodes"),
        pytest.param(job_like(nodes=1), id="one-node"),
        pytest.param(job_like(min_nodes=1), id="elastic"),
        pytest.param(job_like(job=EVERYTHING, min_nodes=2), id="everything"),
    ],
)
def test_an_api_server_takes_it(job):
    with KubeServer() as server:
        assert server.create("PyTorchJob", manifest_of(job))


def test_nodes_are_a_master_and_workers():
    replicas = spec()["pytorchReplicaSpecs"]
    assert {kind: each["replicas"] for kind, each in replicas.items()} == {"Master": 1, "Worker": 2}
    assert list(spec(job_like(nodes=1))["pytorchReplicaSpecs"]) == ["Master"]
    assert spec()["nprocPerNode"] == "2"
    assert "elasticPolicy" not in spec()


def test_elastic_nodes_are_workers_alone():
    elastic = spec(job_like(min_nodes=2))
    assert {kind: each["replicas"] for kind, each in elastic["pytorchReplicaSpecs"].items()} == {
        "Worker": 3
    }
    assert elastic["elasticPolicy"]["minReplicas"] == 2
    assert elastic["elasticPolicy"]["maxReplicas"] == 3


def test_a_job_ends_and_leaves_nothing_without_its_launcher():
    policy = spec()["runPolicy"]
    assert policy["cleanPodPolicy"] == "Running"
    assert policy["backoffLimit"] > 3 * 3
    assert policy["activeDeadlineSeconds"] == 72 * 3600
    assert policy["ttlSecondsAfterFinished"] > 0


def test_settings_reach_the_pods():
    job = job_like(job=EVERYTHING)
    for kind in ("Master", "Worker"):
        made = pod(job, kind)
        assert made["serviceAccountName"] == "trainer"
        assert made["nodeSelector"] == {"gpu": "h100"}
        assert made["tolerations"] == list(EVERYTHING.tolerations)
        assert made["priorityClassName"] == "high"
        assert made["imagePullSecrets"] == [{"name": "registry"}]
        (container,) = made["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert {"name": "NCCL_DEBUG", "value": "INFO"} in container["env"]
    assert manifest_of(job)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert spec(job)["runPolicy"]["suspend"] is True


def test_a_pod_may_do_little():
    made = pod()
    (container,) = made["containers"]
    assert made["automountServiceAccountToken"] is False
    assert made["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_hash_is_of_what_is_learned():
    later = replace(JOB, flags=(*JOB.flags, "--provenance", "code_commit=2"))
    earlier = replace(JOB, flags=(*JOB.flags, "--provenance", "code_commit=1"))
    assert later.spec_sha256 == earlier.spec_sha256  # equal code has an equal code_version
    for change in ({"flags": ("--preset", "other")}, {"image": "trainer:3"}):
        assert replace(JOB, **change).spec_sha256 != JOB.spec_sha256
    assert job_like(nodes=2).spec_sha256 != JOB.spec_sha256


def test_a_run_has_one_name_that_leaves_room_for_its_pods():
    assert job_name("run-1") == job_name("run-1") != job_name("run-2")
    assert len(f"{job_name('x' * 300)}-worker-99") <= 63


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], ""),
        ([("Created", "True")], "Created"),
        ([("Running", "True"), ("Created", "True")], "Running"),
        ([("Failed", "True"), ("Running", "False"), ("Created", "True")], "Failed"),
        ([("Succeeded", "True"), ("Running", "False")], "Succeeded"),
        ([("Restarting", "True"), ("Running", "False")], "Restarting"),
    ],
)
def test_the_state_is_read_from_all_conditions(conditions, state):
    listed = [{"type": kind, "status": status, "message": kind} for kind, status in conditions]
    for order in (listed, listed[::-1]):
        assert state_of({"status": {"conditions": order}}) == (state, state)
    assert state_of({}) == ("", "")


def test_numbers_may_come_as_kubeflow_sends_them():
    read = read_job_settings({"cpu": 4.0, "gpus_per_node": 2.0, "deadline_hours": 1, "disk": "1Ti"})
    assert (read.cpu, read.gpus_per_node, read.deadline_hours) == ("4", 2, 1)
    assert read_job_settings({}) == JobSettings()


@pytest.mark.parametrize(
    ("plain", "expected_text"),
    [
        ({"gpu": 1}, r"train_job\.gpu is not a setting.*; there are: cpu, deadline_hours"),
        ({"memory": "16 GB"}, r"train_job\.memory: .*no amount; write for example.*16 GB"),
        ({"cpu": -1}, r"train_job\.cpu: .*no amount"),
        ({"gpus_per_node": "two"}, r"train_job\.gpus_per_node: .*integer"),
        ({"gpus_per_node": 1.5}, r"train_job\.gpus_per_node: .*integer"),
        ({"max_restarts": -1}, r"train_job: max_restarts is -1"),
        ({"deadline_hours": 0}, r"train_job: deadline_hours is 0"),
        ({"node_selector": ["a"]}, r"train_job\.node_selector: .*dictionary"),
    ],
)
def test_a_setting_that_cannot_work_is_named(plain, expected_text):
    with pytest.raises(ConfigError, match=expected_text):
        read_job_settings(plain)


@pytest.mark.parametrize(
    ("shape", "expected_text"),
    [
        ({"nodes": 0}, "train_nodes is 0"),
        ({"min_nodes": 3}, "train_min_nodes is 3: give 1 to train_nodes, 2"),
        ({"nodes": 3}, r"batch_size 16 does not divide among 3 nodes of 2.*train_min_nodes"),
        ({"nodes": 4, "min_nodes": 2}, "does not divide among 3 nodes"),
    ],
)
def test_a_batch_that_does_not_divide_is_reported(shape, expected_text):
    with pytest.raises(ConfigError, match=expected_text):
        training_request(
            **{"overrides": "optim.batch_size=16", "nodes": 2, "processes_per_node": 2} | shape
        )


def test_a_request_comes_back_as_it_was_written():
    request = training_request(nodes=2, min_nodes=1, job=EVERYTHING)
    assert TrainingRequest.from_json(request.to_json()) == request
    assert training_request(nodes=2).to_json() == training_request(nodes=2).to_json()
