"""From the step's parameters to a job; whole trainings are in tests/e2e."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kube.server import KubeServer
from polarmask.errors import ConfigError
from polarmask_components.cluster.connection import connect
from polarmask_components.errors import LaunchError
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.parameters.job_settings import read_job_settings
from polarmask_components.parameters.train_on import AUTO, PYTORCHJOB, TRAINJOB
from polarmask_components.storage.s3_objects import S3Objects
from polarmask_components.training import cluster_training, trainjob
from polarmask_components.training.artifacts import TrainingOutputs
from polarmask_components.training.cluster_training import make_job, train_on_cluster
from polarmask_components.training.job_identity import end_job_of_run
from polarmask_components.training.pytorchjob import manifest_of
from training_jobs import training_request

RUNTIME = Path(__file__).parents[2] / "k8s/components/trainer/runtime.yaml"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    with KubeServer(namespace="team") as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def job_of(run_id="run-1", job=None, **changes):
    request = training_request(
        **{"overrides": "optim.batch_size=16", "nodes": 2} | changes,
        job=read_job_settings(job or {}),
    )
    flags = ["--preset", "tiny"]
    return make_job(request, connect(), flags=flags, run_id=run_id)


@pytest.fixture
def own_pod(server, monkeypatch):
    """The pod of a step as Argo makes it for Kubeflow."""
    workflow = server.create("Workflow", {"metadata": {"name": "run-abc"}, "spec": {}})
    owner = {
        **{"apiVersion": workflow["apiVersion"], "kind": "Workflow", "controller": True},
        **{"name": "run-abc", "uid": workflow["metadata"]["uid"]},
    }
    containers = [{"name": name, "image": f"{name}:7"} for name in ("wait", "main")]
    metadata = {"name": "own", "ownerReferences": [owner]}
    server.create("Pod", {"metadata": metadata, "spec": {"containers": containers}})
    monkeypatch.setenv("KFP_POD_NAME", "own")


def test_a_job_takes_image_name_and_owner_from_the_pod_of_its_step(own_pod):
    job = job_of(run_id="")
    assert job.image == "main:7"
    assert job.name == job_of(run_id="run-abc").name
    elsewhere = job_of(job={"namespace": "other"})
    assert elsewhere.namespace == "other"
    assert elsewhere.owner is None  # owners live in the namespace of what they own


def test_a_job_goes_with_the_run_it_belongs_to(server, own_pod):
    server.create("PyTorchJob", manifest_of(job_of()))
    server.delete("Workflow", "run-abc")
    assert server.list("PyTorchJob") == []


@pytest.mark.parametrize("namespace", ["", "other"])
def test_a_job_that_lost_its_train_step_ends_with_the_run(server, own_pod, namespace):
    server.create("Namespace", {"metadata": {"name": "other"}})
    job = job_of(run_id="", job={"namespace": namespace})
    another = replace(job, name="polarmask-train-another")
    for each in (job, another):
        server.create("PyTorchJob", manifest_of(each), namespace=job.namespace)
    assert f"{job.namespace}/{job.name}" in end_job_of_run(namespace)
    assert [
        each["metadata"]["name"] for each in server.list("PyTorchJob", namespace=job.namespace)
    ] == [another.name]
    assert end_job_of_run(namespace) == "no training job is left"


@pytest.mark.parametrize("on", [AUTO, TRAINJOB])
def test_a_trainjob_that_lost_its_train_step_ends_with_the_run(server, own_pod, on):
    job = job_of(run_id="", on=TRAINJOB)
    server.create("TrainingRuntime", yaml.safe_load(RUNTIME.read_text()))
    server.create("TrainJob", trainjob.manifest_of(job), namespace="team")
    assert end_job_of_run("", PYTORCHJOB) == "no training job is left"
    assert end_job_of_run("", on).startswith(f"TrainJob team/{job.name} was left")
    assert server.list("TrainJob", namespace="team") == []


def test_a_cluster_without_one_of_the_kinds_fails_no_exit_step(server, own_pod):
    server.delete("CustomResourceDefinition", "trainjobs.trainer.kubeflow.org")
    assert end_job_of_run("") == "no training job is left"


def test_a_cluster_that_cannot_be_asked_fails_no_exit_step(own_pod, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert "is not known: no Kubernetes cluster" in end_job_of_run("")


def test_a_job_that_failed_for_good_is_not_repeated_by_kubeflow_s_retry(
    server, s3_environment, tmp_path, monkeypatch
):
    started = []

    def fail(job, *_, **__):
        started.append(job.name)
        raise LaunchError("is not done after 72 hours")

    monkeypatch.setattr(cluster_training, "run_job", fail)
    (tmp_path / "data").mkdir()
    request = training_request(storage=f"s3://polarmask/{tmp_path.name}")
    folder = tmp_path / "data"
    outputs = TrainingOutputs(model=tmp_path / "model", run=tmp_path / "run")
    for run_id, text in (("one", "x"), ("one", "not sent"), ("another", "sent")):
        (folder / "file").write_text(text)
        with pytest.raises(LaunchError, match="72 hours"):
            train_on_cluster(
                request, data=folder, labels=folder, flags=[], outputs=outputs, run_id=run_id
            )
    assert len(started) == len(set(started)) == 2
    stored = S3Objects.from_uri(f"{request.storage}/inputs").names()
    assert set(stored) == {hashlib.sha256(text).hexdigest() for text in (b"x", b"sent")}


@pytest.mark.parametrize(
    ("given", "target", "namespace"),
    [
        ("", "kubernetes://polarmask/polarmask", "polarmask"),
        ("jobs", "kubernetes://polarmask/polarmask", "jobs"),
        ("", "runs/shared/server", ""),
        ("", "kubernetes://polarmask", ""),
    ],
)
def test_the_job_s_namespace_follows_the_server_s(given, target, namespace):
    assert read_job_settings({"namespace": given}, target=target).namespace == namespace


def test_outside_of_a_cluster_the_defaults_stand(server):
    job = job_of()
    assert (job.image, job.namespace, job.owner) == (TRAINER_IMAGE, "team", None)
    assert job_of(job={"image": "mine:1"}).image == "mine:1"


def test_a_node_has_a_process_for_each_gpu_or_one(server):
    def processes(**changes):
        return manifest_of(job_of(**changes))["spec"]["nprocPerNode"]

    assert processes() == "1"
    assert processes(job={"gpus_per_node": 4.0}) == "4"
    assert processes(job={"gpus_per_node": 4}, processes_per_node=2) == "2"


@pytest.mark.parametrize(
    ("changes", "expected_text"),
    [
        ({"storage": "runs/here"}, "train_storage: 'runs/here' is no place in object storage"),
        ({"storage": ""}, "train_storage: '' is no place"),
        ({"run_id": ""}, "run_id is empty"),
        ({"processes_per_node": -1}, "train_processes_per_node is -1"),
        ({"nodes": 0}, "train_nodes is 0"),
        ({"nodes": 3}, "does not divide among 3 nodes"),
        ({"job": {"deadline_hours": float("nan")}}, r"train_job\.deadline_hours: .* finite"),
        ({"job": {"start_timeout_minutes": "inf"}}, r"train_job\.start_timeout_minutes: .* finite"),
        ({"job": {"cpus": 3}}, r"train_job\.cpus is not a setting"),
        ({"storage": "minio://mlpipeline/x"}, "Kubeflow keeps artifacts.*pods on a cluster share"),
    ],
)
def test_a_parameter_that_cannot_work_is_named(server, changes, expected_text):
    with pytest.raises(ConfigError, match=expected_text):
        job_of(**changes)
