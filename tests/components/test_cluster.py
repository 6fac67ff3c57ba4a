"""The way to a cluster, and the trouble on it."""

import pytest
from kubernetes.client import CoreV1Api
from kubernetes.client.exceptions import ApiException

from kube.faults import Fault
from kube.server import KubeServer
from polarmask_components.cluster.connection import call_api, connect, own_namespace
from polarmask_components.errors import ClusterError


@pytest.fixture
def server(tmp_path, monkeypatch):
    with KubeServer(rules={"nobody": []}, namespace="team") as running:
        monkeypatch.setenv("KUBECONFIG", str(running.write_kubeconfig(tmp_path / "kubeconfig")))
        yield running


def pods():
    return call_api(CoreV1Api(connect()).list_namespaced_pod, "team", deadline_seconds=2)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("pods", status=503, times=2),
        Fault("pods", status=429, times=2),
        Fault("pods", drop=True, times=2),
    ],
    ids=["busy", "throttled", "dropped"],
)
def test_a_bad_moment_passes(server, fault):
    server.faults.add(fault)
    assert pods().items == []
    assert fault.hits == 2


def test_retries_end_at_the_deadline(server, caplog):
    server.faults.add(Fault("pods", status=503, times=100))
    with pytest.raises(ClusterError, match=r"no answer for 2 s; the last try ended with: 503"):
        pods()
    assert "Kubernetes API: 503 Service Unavailable; retrying in" in caplog.text
    with server.outage(), pytest.raises(ClusterError, match=r"no answer for 2 s.*refused"):
        pods()


def test_other_answers_are_not_tried_again(server):
    with pytest.raises(ApiException, match="404"):
        call_api(CoreV1Api(connect()).read_namespaced_pod, "none", "team")
    assert len(server.requests) == 1


def test_a_missing_right_is_reported_with_the_way_to_get_it(server, tmp_path, monkeypatch):
    path = server.write_kubeconfig(tmp_path / "nobody", account="nobody")
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(
        ClusterError,
        match=r"refused: .*nobody.*list.*pods.*bind the Role polarmask-p.*team",
    ):
        pods()
    assert len(server.requests) == 1


def test_no_cluster_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match=r"no Kubernetes cluster: .*KUBECONFIG"):
        connect()
    assert own_namespace() == "default"


def test_the_namespace_is_that_of_the_context(server):
    assert own_namespace() == "team"
