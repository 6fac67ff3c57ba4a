"""Preflight's probe: a pod like the training's reads and writes in object storage, or why not."""

import boto3
import pytest

from kube.kubelet import Kubelet
from kube.operator import TrainingOperator
from kube.server import KubeServer
from polarmask_components.checks import storage_probe
from polarmask_components.checks.storage_probe import check_pods
from polarmask_components.errors import LaunchError
from polarmask_components.parameters.job_settings import JobSettings
from polarmask_components.training.job_launcher import Pace
from serving_cluster import shipped
from training_jobs import training_request

PACE = Pace(look=0.1, stuck=1.0, removal=20.0)


@pytest.fixture
def enter(monkeypatch, tmp_path):
    """Lead this process to a cluster as the pipeline's account, with the shipped Role."""
    monkeypatch.delenv("KFP_POD_NAME", raising=False)

    def enter(server):
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", "polarmask-pipeline")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))

    (role, _) = shipped("pipeline/role.yaml")
    with KubeServer({"polarmask-pipeline": role["rules"]}) as server:
        enter(server)
        yield server


@pytest.fixture
def cluster(enter):
    with Kubelet(enter, nodes={"node-a": {}}), TrainingOperator(enter):
        yield enter
        assert enter.list("PyTorchJob") == []


@pytest.fixture
def request_of(s3_environment, request):
    place = f"s3://polarmask/{request.node.name}"

    def make(**settings):
        return training_request(storage=place, nodes=2, job=JobSettings(**settings))

    yield make
    stored = boto3.client("s3").list_objects_v2(Bucket="polarmask", Prefix=request.node.name)
    names = [each["Key"] for each in stored.get("Contents", ())]
    assert [name for name in names if "/inputs/" not in name] == []


def give_secret(cluster, environment):
    cluster.create("Secret", {"metadata": {"name": "polarmask-s3"}, "stringData": environment})


def test_a_pod_that_reaches_the_storage_is_proof_and_leaves_nothing(
    cluster, request_of, s3_environment
):
    give_secret(cluster, s3_environment)
    # No node has GPUs: the probe needs none.
    assert list(check_pods(request_of(gpus_per_node=8), pace=PACE)) == []


def test_a_secret_that_the_namespace_of_the_pods_lacks_is_named(cluster, request_of):
    with pytest.raises(LaunchError) as caught:
        list(check_pods(request_of(), pace=PACE))
    message = str(caught.value)
    assert message.startswith("training pods can't use train_storage s3://polarmask/test_a_secret")
    assert 'secret "polarmask-s3" not found' in message
    assert "kubectl -n ml create secret generic polarmask-s3 --from-env-file" in message


def test_keys_of_another_store_are_reported(cluster, request_of, s3_environment, kubeflow_store):
    keys = {name: kubeflow_store[name] for name in kubeflow_store if "KEY" in name}
    give_secret(cluster, {**s3_environment, **keys})
    with pytest.raises(LaunchError, match=r"InvalidAccessKeyId[\s\S]*namespace ml have address"):
        list(check_pods(request_of(), pace=PACE))


def test_a_pod_that_waits_for_room_is_a_note(enter, request_of, monkeypatch):
    monkeypatch.setattr(storage_probe, "START_MINUTES", 0.01)
    with TrainingOperator(enter), Kubelet(enter, nodes={}):
        (note,) = check_pods(request_of(), pace=PACE)
    assert "is not known" in note
    assert "did not start in 0.01 minutes" in note
