"""Injected faults, as the official client sees them."""

import time

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from kube.faults import Fault


@pytest.fixture
def core(server):
    return client.CoreV1Api(server.api_client())


def config_map(name):
    return {"metadata": {"name": name}}


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_a_status_is_answered_and_nothing_is_done(server, core, status):
    fault = server.faults.add(Fault("POST .*/configmaps", status=status, times=2, skip=1))
    core.create_namespaced_config_map("ml", config_map("before"))
    for _ in range(2):
        with pytest.raises(ApiException) as caught:
            core.create_namespaced_config_map("ml", config_map("during"))
        assert caught.value.status == status
    assert len(core.list_namespaced_config_map("ml").items) == 1  # GET is spared
    core.create_namespaced_config_map("ml", config_map("after"))
    assert fault.hits == 2


def test_a_dropped_connection_does_nothing(server, core):
    server.faults.add(Fault("POST", drop=True))
    with pytest.raises(HTTPError):
        core.create_namespaced_config_map("ml", config_map("a-map"))
    assert server.list("ConfigMap") == []


def test_a_lost_response_leaves_the_change_done(server, core):
    server.faults.add(Fault("POST", lose_answer=True))
    with pytest.raises(HTTPError):
        core.create_namespaced_config_map("ml", config_map("a-map"))
    assert server.find("ConfigMap", "a-map")


def test_a_delay_exceeds_the_clients_time_limit(server, core):
    server.faults.add(Fault("GET", delay=1.0))
    with pytest.raises(HTTPError):
        # A pair: the client silently ignores a single float.
        core.list_namespaced_config_map("ml", _request_timeout=(0.1, 0.1))
    assert core.list_namespaced_config_map("ml").items == []


def test_a_watch_is_cut(server, core):
    for name in ("one", "two", "three"):
        server.create("ConfigMap", config_map(name))
    server.faults.add(Fault("watch=True", cut_after=2))
    events = []
    stream = watch.Watch().stream(core.list_namespaced_config_map, "ml", timeout_seconds=5)
    with pytest.raises(HTTPError):
        events += (event["object"].metadata.name for event in stream)
    assert len(server.requests) == 1


def test_a_log_is_slow(server, core):
    pod = server.create(
        "Pod",
        {
            "metadata": {"name": "a-pod"},
            "spec": {"containers": [{"name": "main", "image": "any"}]},
        },
    )
    run = server.logs.start(pod, "main")
    for number in range(3):
        server.logs.write(run, f"{number}\n")
    server.faults.add(Fault("/log", line_delay=0.1))
    started = time.monotonic()
    assert core.read_namespaced_pod_log("a-pod", "ml") == "0\n1\n2\n"
    assert time.monotonic() - started >= 0.3
