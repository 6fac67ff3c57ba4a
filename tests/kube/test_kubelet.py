"""Pods run as processes, and their status shows what happened."""

import signal
import socket
from contextlib import suppress

import pytest

from kube.conftest import pod_of
from kube.errors import ApiError
from kube.kubelet import Kubelet
from kube.process import is_alive


@pytest.fixture
def kubelet(server):
    with Kubelet(server) as running:
        yield running


def phase(server, name="a-pod"):
    return (server.find("Pod", name) or {}).get("status", {}).get("phase")


def status_of(server, name="a-pod"):
    """Return the status of a pod's first container, init container or not."""
    status = server.get("Pod", name)["status"]
    return (status.get("containerStatuses") or [{"state": {}}])[0]


def waiting(server, name="a-pod"):
    return status_of(server, name)["state"].get("waiting", {}).get("reason")


def run(server, command, **options):
    """Run a pod to its end; return its phase and what it printed."""
    server.create("Pod", pod_of(command, **{"restartPolicy": "Never", **options}))
    server.wait_for(lambda: phase(server) in ("Succeeded", "Failed"))
    return phase(server), server.logs.text("a-pod")


def test_a_pod_runs_to_its_end(server, kubelet):
    assert run(server, "echo hello") == ("Succeeded", "hello\n")
    terminated = status_of(server)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (0, "Completed")


def test_a_failed_pod_has_its_exit_code(server, kubelet):
    assert run(server, "exit 7")[0] == "Failed"
    assert status_of(server)["state"]["terminated"]["exitCode"] == 7


def test_init_containers_run_first_and_in_order(server, kubelet):
    init = [
        {"name": name, "image": "any", "command": ["sh", "-c", f"echo {name} >> /desk/order"]}
        for name in ("one", "two")
    ]
    mounts = {"volumeMounts": [{"name": "work", "mountPath": "/desk"}]}
    assert run(
        server,
        "cat /desk/order",
        container=mounts,
        initContainers=[each | mounts for each in init],
        volumes=[{"name": "work", "emptyDir": {}}],
    ) == ("Succeeded", "one\ntwo\n")


def test_the_environment_is_what_the_pod_declares(server, kubelet, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the user")
    server.create("Secret", {"metadata": {"name": "keys"}, "stringData": {"KEY": "secret"}})
    server.create("ConfigMap", {"metadata": {"name": "settings"}, "data": {"SIZE": "3 x 4"}})
    field = {"fieldRef": {"fieldPath": "status.podIP"}}
    container = {
        "env": [
            {"name": "PLAIN", "value": "plain"},
            {"name": "COMPOSED", "value": "$(PLAIN)-$(KEY)-$$(PLAIN)-$(UNKNOWN)"},
            {"name": "IP", "valueFrom": field},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "ONE", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "KEY"}}},
            {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        ],
        "envFrom": [{"secretRef": {"name": "keys"}}, {"configMapRef": {"name": "settings"}}],
        "resources": {"limits": {"cpu": "1500m"}},
        "args": ["ignored", "$(PLAIN)"],
    }
    command = 'echo "$PLAIN $COMPOSED $IP $NAME $ONE $CORES $1 $SIZE [$AWS_SECRET_ACCESS_KEY]"'
    _, printed = run(server, command, container=container)
    address = server.get("Pod", "a-pod")["status"]["podIP"]
    assert printed == (
        f"plain plain-secret-$(PLAIN)-$(UNKNOWN) {address} a-pod secret 2 plain 3 x 4 []\n"
    )


def test_mount_paths_are_folders_of_the_pod(server, kubelet, tmp_path):
    mount = {"name": "scratch", "mountPath": str(tmp_path.parent)}
    secret = {"name": "keys", "mountPath": "/etc/keys"}
    server.create("Secret", {"metadata": {"name": "keys"}, "stringData": {"key": "secret"}})
    (tmp_path / "own").write_text("of the test\n")
    container = {
        "volumeMounts": [mount, secret | {"readOnly": True}],
        "env": [
            {"name": "FILE", "value": f"{tmp_path.parent}/file"},
            {"name": "OWN", "value": f"{tmp_path}/own"},
        ],
    }
    volumes = [
        {"name": "scratch", "emptyDir": {}},
        {"name": "keys", "secret": {"secretName": "keys"}},
    ]
    command = f"cat /etc/keys/key $OWN; echo written > $FILE; cat {tmp_path.parent}/file"
    _, printed = run(server, command, container=container, volumes=volumes)
    assert printed == "secretof the test\nwritten\n"
    assert not (tmp_path.parent / "file").exists()


def test_a_pod_listens_on_its_own_address(server, kubelet):
    listen = (
        "import os, socket; s = socket.create_server((os.environ['IP'], 8080)); s.accept(); "
        "s.close()"
    )
    field = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container = {
        "command": ["python", "-c", listen],
        "env": [field],
    }
    for name in ("one", "two"):
        server.create("Pod", pod_of("", name, container=container, restartPolicy="Never"))
    for name in ("one", "two"):
        server.wait_for(lambda name=name: phase(server, name) == "Running")
        address = server.get("Pod", name)["status"]["podIP"]
        server.wait_for(lambda address=address: answers(address, 8080))
        server.wait_for(lambda name=name: phase(server, name) == "Succeeded")


def answers(address, port):
    with suppress(OSError):
        socket.create_connection((address, port), timeout=1).close()
        return True
    return False


def test_a_crash_is_restarted_with_its_volumes_and_after_a_pause(server, kubelet):
    command = "echo x >> /desk/starts; test $(wc -l < /desk/starts) -ge 3"
    _, printed = run(
        server,
        f"{command} && echo third",
        container={"volumeMounts": [{"name": "work", "mountPath": "/desk"}]},
        restartPolicy="OnFailure",
        volumes=[{"name": "work", "emptyDir": {}}],
    )
    assert printed == "third\n"
    status = status_of(server)
    assert status["restartCount"] == 2
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert any("BackOff" in event for event in server.events())


def test_a_container_that_crashes_repeatedly_is_restarted_with_backoff(server):
    with Kubelet(server, backoff=30.0):
        server.create("Pod", pod_of("exit 3", restartPolicy="Always"))
        server.wait_for(lambda: waiting(server) == "CrashLoopBackOff")
        server.wait_for(lambda: status_of(server)["restartCount"] == 1)
        assert phase(server) == "Running"


def test_a_missing_image_or_secret_keeps_a_pod_waiting_until_it_is_there(server):
    images = {}
    with Kubelet(server, images):
        container = {"envFrom": [{"secretRef": {"name": "keys"}}]}
        server.create("Pod", pod_of("echo $KEY", container=container, restartPolicy="Never"))
        server.wait_for(lambda: waiting(server) == "ImagePullBackOff")
        images["any"] = []
        server.wait_for(lambda: waiting(server) == "CreateContainerConfigError")
        assert "not found" in status_of(server)["state"]["waiting"]["message"]
        server.create("Secret", {"metadata": {"name": "keys"}, "stringData": {"KEY": "secret"}})
        server.wait_for(lambda: phase(server) == "Succeeded")
    assert server.logs.text("a-pod") == "secret\n"


def test_an_image_brings_its_entry_point(server):
    with Kubelet(server, {"any": ["echo", "entry"]}):
        server.create(
            "Pod",
            {
                "metadata": {"name": "a-pod"},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "any", "args": ["point"]}],
                },
            },
        )
        server.wait_for(lambda: phase(server) == "Succeeded")
    assert server.logs.text("a-pod") == "entry point\n"


def test_a_program_that_is_not_there_is_a_start_error(server, kubelet):
    assert run(server, "", container={"command": ["no-such-program"]})[0] == "Failed"
    assert status_of(server)["state"]["terminated"]["reason"] == "StartError"


def test_a_pod_is_ready_when_its_probe_succeeds(server, kubelet, tmp_path):
    file = tmp_path / "ready"
    probe = {"exec": {"command": ["test", "-e", str(file)]}, "periodSeconds": 1}
    container = {"readinessProbe": probe | {"failureThreshold": 1}}
    server.create("Pod", pod_of("sleep 60", container=container))
    server.wait_for(lambda: phase(server) == "Running")
    assert "Ready" not in server.conditions("Pod", "a-pod")
    file.touch()
    server.wait_for(lambda: "Ready" in server.conditions("Pod", "a-pod"))
    file.unlink()
    server.wait_for(lambda: "Ready" not in server.conditions("Pod", "a-pod"))
    assert status_of(server)["restartCount"] == 0


@pytest.mark.parametrize("kind", ["startupProbe", "livenessProbe"])
def test_a_probe_that_fails_restarts_the_container(server, kubelet, kind):
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    server.create("Pod", pod_of("exec sleep 60", container={kind: probe}))
    server.wait_for(lambda: status_of(server).get("restartCount"))
    assert status_of(server)["lastState"]["terminated"]["exitCode"] == 143


def test_a_deleted_pod_gets_its_hook_then_sigterm_and_ends(server, kubelet):
    command = "trap 'echo got SIGTERM; exit 0' TERM; echo up; while true; do sleep 0.05; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /desk/hook"]}}}
    container = {"lifecycle": hook, "volumeMounts": [{"name": "work", "mountPath": "/desk"}]}
    volumes = [{"name": "work", "emptyDir": {}}]
    server.create("Pod", pod_of(command, container=container, volumes=volumes))
    server.wait_for(lambda: phase(server) == "Running")
    wait_for_line(server, "up")
    server.delete("Pod", "a-pod")
    assert "deletionTimestamp" in server.get("Pod", "a-pod")["metadata"]
    server.wait_for(lambda: server.find("Pod", "a-pod") is None)
    assert server.logs.text("a-pod").endswith("got SIGTERM\n")


def wait_for_line(server, text):
    with server.logs.changed:
        assert server.logs.changed.wait_for(lambda: text in server.logs.text("a-pod"), 20)


def test_a_pod_that_ignores_sigterm_is_killed_when_its_grace_is_over(server, kubelet):
    command = "trap '' TERM; echo up; while true; do sleep 0.05; done"
    server.create("Pod", pod_of(command, terminationGracePeriodSeconds=1))
    wait_for_line(server, "up")
    processes = kubelet.process_ids("a-pod")
    server.delete("Pod", "a-pod")
    server.wait_for(lambda: server.find("Pod", "a-pod") is None)
    assert processes
    assert not any(is_alive(pid) for pid in processes)


def test_a_pod_that_was_deleted_before_it_started_is_removed(server):
    server.create("Pod", pod_of("sleep 600", nodeName="node-0"))
    server.delete("Pod", "a-pod")
    assert "deletionTimestamp" in server.get("Pod", "a-pod")["metadata"]
    with Kubelet(server):
        server.wait_for(lambda: server.find("Pod", "a-pod") is None)
    assert server.logs.text("a-pod") == ""


def test_background_processes_end_with_their_container(server, kubelet):
    code = (
        "import subprocess; "
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True); "
        "print(child.pid, flush=True)"
    )
    container = {"command": ["python", "-W", "ignore", "-c", code]}
    phase_, printed = run(server, "", container=container)
    assert phase_ == "Succeeded"
    assert not is_alive(int(printed))


def test_a_killed_container_has_a_reason(server, kubelet):
    server.create("Pod", pod_of("sleep 60", restartPolicy="Never"))
    server.wait_for(lambda: phase(server) == "Running")
    kubelet.kill_pod("a-pod", signal.SIGKILL, reason="OOMKilled")
    server.wait_for(lambda: phase(server) == "Failed")
    terminated = status_of(server)["state"]["terminated"]
    assert (terminated["exitCode"], terminated["reason"]) == (137, "OOMKilled")


def test_a_pod_waits_for_a_node_with_enough_gpus(server):
    gpu = "nvidia.com/gpu"
    container = {"resources": {"limits": {gpu: "2"}}}
    with Kubelet(server, nodes={"small": {gpu: 1}, "large": {gpu: 2}}):
        for name in ("one", "two"):
            server.create("Pod", pod_of("sleep 60", name, container=container))
        server.wait_for(lambda: phase(server, "one") == "Running")
        server.wait_for(lambda: any("FailedScheduling" in each for each in server.events()))
        assert server.get("Pod", "one")["spec"]["nodeName"] == "large"
        condition = server.get("Pod", "two")["status"]["conditions"][0]
        assert condition["reason"] == "Unschedulable"
        assert "Insufficient nvidia.com/gpu" in condition["message"]
        server.delete("Pod", "one", grace=0)
        server.wait_for(lambda: phase(server, "two") == "Running")


def test_selectors_and_taints_choose_nodes(server):
    with Kubelet(server, nodes={"plain": {}, "special": {}}):
        taint = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
        server.update("Node", "special", lambda node: node.update(spec={"taints": [taint]}))
        server.update("Node", "special", lambda node: node["metadata"]["labels"].update(a="b"))
        tolerant = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
        server.create("Pod", pod_of("sleep 60", "stuck", nodeSelector={"a": "b"}))
        server.create("Pod", pod_of("sleep 60", "there", nodeSelector={"a": "b"}, **tolerant))
        server.create("Pod", pod_of("sleep 60", "anywhere"))
        server.wait_for(lambda: phase(server, "there") == "Running")
        server.wait_for(lambda: phase(server, "anywhere") == "Running")
        assert server.get("Pod", "there")["spec"]["nodeName"] == "special"
        assert server.get("Pod", "anywhere")["spec"]["nodeName"] == "plain"
        assert phase(server, "stuck") == "Pending"


def test_a_lost_node_loses_its_pods(server):
    with Kubelet(server, nodes={"a": {}, "b": {}}) as kubelet:
        server.create("Pod", pod_of("trap '' TERM; sleep 60"))
        server.wait_for(lambda: phase(server) == "Running")
        processes = kubelet.process_ids("a-pod")
        kubelet.lose_node(server.get("Pod", "a-pod")["spec"]["nodeName"])
        assert server.list("Pod") == []
        assert processes
        assert not any(is_alive(pid) for pid in processes)
        assert len(server.list("Node")) == 1


def test_nothing_is_left_when_the_kubelet_ends(server):
    with Kubelet(server) as kubelet:
        server.create("Pod", pod_of("trap '' TERM; sleep 600"))
        server.wait_for(lambda: phase(server) == "Running")
        processes = kubelet.process_ids("a-pod")
    assert processes
    assert not any(is_alive(pid) for pid in processes)


@pytest.mark.parametrize(
    ("objects", "expected_text"),
    [
        ([], "service account ml/trainer: not found"),
        (["account", "restricted"], 'main" must set securityContext.runAsNonRoot=true'),
        (["account", "quota"], "exceeded quota: few, requested: requests.nvidia.com/gpu=1"),
    ],
)
def test_forbidden_pods_are_refused(server, objects, expected_text):
    if "account" in objects:
        server.create("ServiceAccount", {"metadata": {"name": "trainer"}})
    if "restricted" in objects:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        server.update("Namespace", "ml", lambda obj: obj["metadata"].update(labels=labels))
    if "quota" in objects:
        hard = {"requests.nvidia.com/gpu": "0"}
        server.create("ResourceQuota", {"metadata": {"name": "few"}, "spec": {"hard": hard}})
    container = {"resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = pod_of("true", container=container, serviceAccountName="trainer")
    with pytest.raises(ApiError, match=expected_text):
        server.create("Pod", pod)
