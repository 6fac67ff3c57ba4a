"""kubectl works with the server."""

import json
import shutil
import subprocess

import pytest
import yaml

from kube.access import bind
from kube.conftest import pod_of

CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a-map"}}


@pytest.fixture
def kubectl(server, tmp_path):
    """Return a function that runs kubectl and returns what it prints."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    config = server.write_kubeconfig(tmp_path / "kubeconfig")
    environment = {"KUBECONFIG": str(config), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    environment["PATH"] = f"{shutil.which('kubectl').rsplit('/', 1)[0]}:{environment['PATH']}"

    def run(*arguments, given=None, fails=False):
        done = subprocess.run(
            ["kubectl", *arguments],
            env=environment,
            input=given and yaml.safe_dump_all(given),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run


def deployment(image):
    labels = {"app": "web"}
    containers = [{"name": "web", "image": image}, {"name": "side", "image": "side:1"}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
    }


def test_apply_creates_changes_and_removes(server, kubectl):
    first = CONFIG_MAP | {"data": {"a": "1", "b": "2"}}
    assert "created" in kubectl("apply", "-f", "-", given=[first, deployment("web:1")])
    second = CONFIG_MAP | {"data": {"b": "3"}}
    changed = deployment("web:2")
    del changed["spec"]["template"]["spec"]["containers"][1]
    assert "configured" in kubectl("apply", "-f", "-", given=[second, changed])
    assert server.get("ConfigMap", "a-map")["data"] == {"b": "3"}
    containers = server.get("Deployment", "web")["spec"]["template"]["spec"]["containers"]
    assert [each["image"] for each in containers] == ["web:2"]
    assert "unchanged" in kubectl("apply", "-f", "-", given=[second])


def test_apply_on_the_server_and_a_dry_run(server, kubectl):
    kubectl("apply", "--server-side", "-f", "-", given=[CONFIG_MAP | {"data": {"a": "1"}}])
    assert server.get("ConfigMap", "a-map")["data"] == {"a": "1"}
    given = [CONFIG_MAP | {"data": {"a": "2"}}]
    kubectl("apply", "--dry-run=server", "-f", "-", given=given)
    assert server.get("ConfigMap", "a-map")["data"] == {"a": "1"}


def test_the_server_refuses_what_is_not_valid(kubectl):
    wrong = deployment("web:1")
    wrong["spec"]["template"]["spec"]["containers"][0]["imagen"] = "web:1"
    assert "'imagen' was unexpected" in kubectl("apply", "-f", "-", given=[wrong], fails=True)


def test_get_logs_wait_and_delete(server, kubectl):
    pod = server.create("Pod", pod_of("true"))
    run = server.logs.start(pod, "main")
    server.logs.write(run, "hello\n")
    found = json.loads(kubectl("get", "pod", "a-pod", "-o", "json"))
    assert found["spec"]["containers"][0]["name"] == "main"
    assert "a-pod" in kubectl("get", "po")
    assert kubectl("logs", "a-pod") == "hello\n"
    kubectl("delete", "pod", "a-pod", "--wait")
    assert server.list("Pod") == []
    assert "NotFound" in kubectl("get", "pod", "a-pod", fails=True)


def test_acting_as_an_account(server, kubectl):
    server.create("ServiceAccount", {"metadata": {"name": "launcher"}})
    bind(
        *(server.store, "launcher"),
        [{"apiGroups": ["kubeflow.org"], "resources": ["pytorchjobs"], "verbs": ["list"]}],
        "ml",
    )
    user = "--as=system:serviceaccount:ml:launcher"
    assert kubectl("get", "pytorchjobs", user) == ""
    assert "Forbidden" in kubectl("get", "pods", user, fails=True)
