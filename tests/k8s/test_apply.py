"""kubectl applies an overlay to the tests' API server, as a person does to a cluster."""

import os
import subprocess

import pytest
import yaml
from kubernetes.client import AppsV1Api

from kube.server import KubeServer

DEPLOYED = {
    "spec": {
        "replicas": 3,
        "template": {
            "metadata": {"annotations": {"polarmask.io/version": "7"}},
            "spec": {
                "initContainers": [
                    {"name": "fetch-model", "env": [{"name": "MODEL_URI", "value": "s3://b/7.mar"}]}
                ]
            },
        },
    }
}


@pytest.fixture
def server():
    with KubeServer(namespace="polarmask") as running:
        yield running


@pytest.fixture
def apply(server, kind, tmp_path):
    """Return a function that applies the overlay and returns what kubectl says."""
    config = server.write_kubeconfig(tmp_path / "kubeconfig")

    def apply():
        done = subprocess.run(
            ["kubectl", "apply", "-f", "-"],
            env={**os.environ, "KUBECONFIG": str(config), "HOME": str(tmp_path)},
            input=yaml.safe_dump_all(kind),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return apply


def test_applying_again_changes_neither_the_model_nor_the_number_of_pods(server, apply):
    assert "deployment.apps/polarmask created" in apply()
    deployments = AppsV1Api(server.api_client())
    deployments.patch_namespaced_deployment("polarmask", "polarmask", DEPLOYED)
    before = server.get("Deployment", "polarmask")["spec"]

    assert "deployment.apps/polarmask unchanged" in apply()
    after = server.get("Deployment", "polarmask")["spec"]
    assert after == before
    assert after["replicas"] == 3
    (fetch,) = after["template"]["spec"]["initContainers"]
    assert {"name": "MODEL_URI", "value": "s3://b/7.mar"} in fetch["env"]
