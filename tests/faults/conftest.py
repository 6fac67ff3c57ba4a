"""A small cluster for each test, and what has to hold after every fault."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from kube.kubelet import Kubelet
from kube.operator import TrainingOperator
from kube.server import KubeServer
from serving_cluster import shipped

ACCOUNT = "polarmask-pipeline"
SECONDS_PER_FAULT = 120
"""No fault may keep anybody waiting for longer than this, here."""


@dataclass
class Cluster:
    """API server, nodes and training operator, and where they are reached."""

    server: KubeServer
    kubelet: Kubelet
    kubeconfig: Path
    before: set = field(default_factory=set)
    """Processes that were there before."""

    def left_behind(self):
        """Return jobs, pods and processes that are there now and were not before."""
        kinds = ("PyTorchJob", "Pod")
        objects = [each["metadata"]["name"] for kind in kinds for each in self.server.list(kind)]
        processes = [each for each in children() if each.pid not in self.before]
        return [*objects, *(_words(each) for each in processes)]


def children():
    return psutil.Process().children(recursive=True)


def _words(process):
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return f"{process.pid} (ending)"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A cluster of two nodes with the shipped Role; nothing may be left in it when a test ends."""
    nodes = {"node-a": {}, "node-b": {}}
    before = {each.pid for each in children()}
    (role, _) = shipped("pipeline/role.yaml")
    with (
        KubeServer({ACCOUNT: role["rules"]}) as server,
        Kubelet(server, nodes=nodes) as kubelet,
        TrainingOperator(server),
    ):
        kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig", ACCOUNT)
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        began = time.monotonic()
        made = Cluster(server, kubelet, kubeconfig, before)
        yield made
        seconds = time.monotonic() - began
        give_up = time.monotonic() + 15
        while made.left_behind() and time.monotonic() < give_up:
            time.sleep(0.05)
        assert made.left_behind() == []
        assert seconds < SECONDS_PER_FAULT
