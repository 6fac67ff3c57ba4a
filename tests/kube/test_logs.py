"""The log of a container: tails, starts, and following it while it runs."""

import threading

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from kube.conftest import pod_of


@pytest.fixture
def core(server):
    return client.CoreV1Api(server.api_client())


@pytest.fixture
def pod(server):
    return server.create("Pod", pod_of("true"))


def read(core, **options):
    return core.read_namespaced_pod_log("a-pod", "ml", **options)


def test_a_container_that_waits_has_no_log(core, pod):
    with pytest.raises(ApiException) as caught:
        read(core)
    assert caught.value.status == 400
    assert "is waiting to start: ContainerCreating" in caught.value.body


def test_the_last_lines_and_the_lines_since_a_time(server, core, pod):
    run = server.logs.start(pod, "main")
    for number in range(5):
        server.logs.write(run, f"{number}\n")
    assert read(core, tail_lines=2) == "3\n4\n"
    assert read(core, tail_lines=0) == ""
    stamped = read(core, timestamps=True).splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == list("01234")
    # The client has sinceSeconds only; sinceTime is for hand-written requests.
    assert read(core, since_seconds=60) == "0\n1\n2\n3\n4\n"
    path = "/api/v1/namespaces/ml/pods/a-pod/log"
    since = [("sinceTime", stamped[3].split(" ")[0])]
    answer = server.api_client().call_api(path, "GET", query_params=since, _preload_content=False)
    assert answer[0].data == b"3\n4\n"


def test_a_restarted_container_has_a_previous_log(server, core, pod):
    for number in range(2):
        run = server.logs.start(pod, "main")
        server.logs.write(run, f"start {number}\n")
        server.logs.finish(run)
    assert read(core) == "start 1\n"
    assert read(core, previous=True) == "start 0\n"
    assert server.logs.text("a-pod") == "start 0\nstart 1\n"


def test_following_a_log_yields_lines_as_they_come_and_ends(server, core, pod):
    run = server.logs.start(pod, "main")
    server.logs.write(run, "first\n")
    seen = []
    got_first = threading.Event()

    def write():
        assert got_first.wait(10)
        server.logs.write(run, "second\n")
        server.logs.finish(run)

    writer = threading.Thread(target=write)
    writer.start()
    for line in watch.Watch().stream(core.read_namespaced_pod_log, "a-pod", "ml"):
        seen.append(line)
        got_first.set()
    writer.join()
    assert seen == ["first", "second"]


def test_one_of_several_containers_must_be_named(server, core):
    containers = [{"name": name, "image": "any"} for name in ("one", "two")]
    server.create("Pod", {"metadata": {"name": "a-pod"}, "spec": {"containers": containers}})
    with pytest.raises(ApiException, match="choose one of: \\[one two\\]"):
        read(core)
    with pytest.raises(ApiException, match="container three is not valid"):
        read(core, container="three")
