"""Deployments roll out pod by pod, and Services forward to ready pods that do not terminate."""

import http.client
import itertools
import urllib.request
from contextlib import suppress

import pytest

from kube.deployments import DeploymentController
from kube.kubelet import Kubelet
from kube.services import ServiceProxy

# Answers with its version; ends at once on SIGTERM, as Java does.
SERVER = """
import http.server, os, signal

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        answer = os.environ["VERSION"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer((os.environ["IP"], 8080), Handler).serve_forever()
"""
LABELS = {"app": "web"}
REFUSED = (OSError, http.client.HTTPException)


@pytest.fixture
def cluster(server):
    """The server with nodes and all controllers that a Deployment needs."""
    with Kubelet(server), DeploymentController(server), ServiceProxy(server):
        yield server


def template_of(version, command=("python", "-c", SERVER), *, drain=1):
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    container = {
        "name": "web",
        "image": "web:1",
        "command": list(command),
        "env": [
            {"name": "VERSION", "value": version},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "readinessProbe": probe,
        "lifecycle": {"preStop": {"sleep": {"seconds": drain}}},
    }
    return {"metadata": {"labels": LABELS}, "spec": {"containers": [container]}}


def deploy(server, version, **spec):
    body = {
        "replicas": 2,
        "selector": {"matchLabels": LABELS},
        "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template_of(version),
        **spec,
    }
    if server.find("Deployment", "web"):
        server.update("Deployment", "web", lambda obj: obj["spec"].update(body))
    else:
        server.create("Deployment", {"metadata": {"name": "web"}, "spec": body})


def make_service(server):
    ports = [{"port": 8000, "targetPort": 8080}]
    body = {"metadata": {"name": "web"}, "spec": {"selector": LABELS, "ports": ports}}
    server.create("Service", body)
    server.wait_for(lambda: server.get("Service", "web")["spec"].get("clusterIP"))
    address = server.get("Service", "web")["spec"]["clusterIP"]
    return f"http://{address}:8000/"


def ask(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def progress(server):
    """Return the reason of the condition Progressing of the current spec."""
    deployment = server.get("Deployment", "web")
    status = deployment.get("status", {})
    if status.get("observedGeneration") != deployment["metadata"]["generation"]:
        return None
    return next(each["reason"] for each in status["conditions"] if each["type"] == "Progressing")


def count(server, name):
    return server.get("Deployment", "web").get("status", {}).get(name, 0)


def finish(server):
    server.wait_for(lambda: progress(server) == "NewReplicaSetAvailable", timeout=60)


def test_a_new_version_comes_without_a_failed_request(cluster):
    deploy(cluster, "1")
    url = make_service(cluster)
    finish(cluster)
    cluster.wait_for(lambda: not fails(url))
    deploy(cluster, "2")
    answers = [ask(url)]
    cluster.wait_for(
        lambda: answers.append(ask(url)) or progress(cluster) == "NewReplicaSetAvailable",
        timeout=60,
    )
    versions = [version for version, _ in itertools.groupby(answers)]
    assert set(versions) == {"1", "2"}
    assert {ask(url) for _ in range(10)} == {"2"}
    status = cluster.get("Deployment", "web")["status"]
    assert status["updatedReplicas"] == status["availableReplicas"] == status["replicas"] == 2


def test_no_pod_is_deleted_before_its_successor_is_ready(cluster):
    deploy(cluster, "1")
    finish(cluster)
    deploy(cluster, "2")
    seen = []

    def watch():
        staying = [pod for pod in cluster.list("Pod") if "deletionTimestamp" not in pod["metadata"]]
        ready = [
            pod for pod in staying if "Ready" in cluster.conditions("Pod", pod["metadata"]["name"])
        ]
        seen.append((len(staying), len(ready)))
        return progress(cluster) == "NewReplicaSetAvailable"

    cluster.wait_for(watch, timeout=60)
    assert max(staying for staying, _ in seen) == 3  # maxSurge 1
    assert min(ready for _, ready in seen) == 2  # maxUnavailable 0


def test_a_version_that_never_answers_leaves_the_old_one_alone(cluster):
    deploy(cluster, "1")
    url = make_service(cluster)
    finish(cluster)
    cluster.wait_for(lambda: not fails(url))
    deploy(cluster, "2", progressDeadlineSeconds=1, template=template_of("2", ["sleep", "600"]))
    cluster.wait_for(lambda: progress(cluster) == "ProgressDeadlineExceeded")
    assert {ask(url) for _ in range(10)} == {"1"}
    assert "Available" in cluster.conditions("Deployment", "web")
    deploy(cluster, "1")  # back
    finish(cluster)
    cluster.wait_for(lambda: len(cluster.list("Pod")) == 2)
    revisions = {
        each["metadata"]["annotations"]["deployment.kubernetes.io/revision"]: each["spec"][
            "replicas"
        ]
        for each in cluster.list("ReplicaSet")
    }
    assert revisions == {"2": 0, "3": 2}


def test_min_ready_seconds_delay_what_counts_as_available(cluster):
    deploy(cluster, "1", replicas=1, minReadySeconds=3)
    cluster.wait_for(lambda: count(cluster, "readyReplicas") == 1)
    assert count(cluster, "availableReplicas") == 0
    finish(cluster)


def test_a_deployment_scales_to_none_and_back(cluster):
    deploy(cluster, "1")
    finish(cluster)
    deploy(cluster, "1", replicas=0)
    cluster.wait_for(lambda: cluster.list("Pod") == [])
    deploy(cluster, "1", replicas=1)
    cluster.wait_for(lambda: count(cluster, "availableReplicas") == 1)
    cluster.delete("Deployment", "web")
    cluster.wait_for(lambda: cluster.list("Pod") == cluster.list("ReplicaSet") == [])


def test_a_recreated_deployment_ends_the_old_pods_first(cluster):
    deploy(cluster, "1", replicas=1, strategy={"type": "Recreate"})
    finish(cluster)
    deploy(cluster, "2", replicas=1, strategy={"type": "Recreate"})
    seen = []

    def watch():
        pods = cluster.list("Pod")
        seen.append(sum("deletionTimestamp" not in pod["metadata"] for pod in pods))
        return progress(cluster) == "NewReplicaSetAvailable"

    cluster.wait_for(watch, timeout=60)
    assert max(seen) == 1


def test_a_pod_that_terminates_gets_no_connections(cluster):
    deploy(cluster, "1", replicas=1, template=template_of("1", drain=20))
    url = make_service(cluster)
    finish(cluster)
    cluster.wait_for(lambda: not fails(url))  # the proxy learns of pods later
    assert ask(url) == "1"
    cluster.update("Deployment", "web", lambda obj: obj["spec"].update(replicas=0))
    cluster.wait_for(
        lambda: [pod for pod in cluster.list("Pod") if "deletionTimestamp" in pod["metadata"]]
    )
    pod = cluster.list("Pod")[0]
    cluster.wait_for(lambda: fails(url))
    # It still answers direct connections: it sleeps before it stops.
    assert ask(f"http://{pod['status']['podIP']}:8080/") == "1"
    with pytest.raises(REFUSED):
        ask(url)


def fails(url):
    with suppress(*REFUSED):
        ask(url)
        return False
    return True
