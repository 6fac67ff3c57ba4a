"""From the step's parameters to a job; whole trainings are in tests/e2e."""

from dataclasses import replace
from pathlib import Path

import pytest
from kfp import dsl

from kube.server import KubeServer
from polarmask.errors import ConfigError
from polarmask_components.cluster.connection import connect
from polarmask_components.images import TRAINER_IMAGE
from polarmask_components.steps.train import train
from polarmask_components.training.cluster_training import ClusterRequest, make_job

REQUEST = ClusterRequest(
    nodes=2,
    min_nodes=0,
    processes_per_node=0,
    job={},
    storage="s3://bucket/training",
    run_id="run-1",
)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("KFP_POD_NAME", raising=False)
    with KubeServer(namespace="team") as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def job_of(request=REQUEST, data="s3://bucket/data", **changes):
    return make_job(
        replace(request, **changes),
        connect(),
        data=data,
        labels="minio://bucket/labels",
        flags=["--preset", "tiny"],
        batch=16,
    )


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
    server.create("PyTorchJob", job_of().manifest())
    server.delete("Workflow", "run-abc")
    assert server.list("PyTorchJob") == []


def test_outside_of_a_cluster_the_defaults_stand(server):
    job = job_of()
    assert (job.image, job.namespace, job.owner) == (TRAINER_IMAGE, "team", None)
    assert job_of(job={"image": "mine:1"}).image == "mine:1"


def test_a_node_has_a_process_for_each_gpu_or_one(server):
    assert job_of().processes_per_node == 1
    assert job_of(job={"gpus_per_node": 4.0}).processes_per_node == 4
    assert job_of(job={"gpus_per_node": 4}, processes_per_node=2).processes_per_node == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"storage": "runs/here"}, "train_storage: 'runs/here' is no place in object storage"),
        ({"storage": ""}, "train_storage: '' is no place"),
        ({"run_id": ""}, "run_id is empty"),
        ({"processes_per_node": -1}, "train_processes_per_node is -1"),
        ({"nodes": 0}, "train_nodes is 0"),
        ({"nodes": 3}, "does not divide among 3 nodes"),
        ({"job": {"cpus": 3}}, r"train_job\.cpus is not a setting"),
        ({"data": "runs/artifacts/data"}, "pods on a cluster share no disk"),
    ],
)
def test_a_parameter_that_cannot_work_is_named(server, changes, words):
    with pytest.raises(ConfigError, match=words):
        job_of(**changes)


def test_another_place_to_train_is_refused(tmp_path):
    def artifact(kind, **metadata):
        return kind(name="a", uri=str(tmp_path / "a"), metadata=metadata)

    with pytest.raises(ConfigError, match="train_on is 'moon'; there are: here, pytorchjob"):
        train.python_func(
            dataset=artifact(dsl.Dataset, data_commit="", data_hash=""),
            labels=artifact(dsl.Dataset),
            preset="tiny",
            overrides="",
            code_version="",
            model=artifact(dsl.Model),
            run=artifact(dsl.Artifact),
            on="moon",
        )
    assert not Path(tmp_path / "a").exists()
