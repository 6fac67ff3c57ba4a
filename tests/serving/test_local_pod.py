"""A pod on this machine: found again, moved to another port, ended without leftovers."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests

from polarmask_serving.__main__ import main
from polarmask_serving.errors import PortTakenError, ServerError
from polarmask_serving.local_pod import LocalPod
from polarmask_serving.proxy.config import Limits
from polarmask_serving.torchserve.launch import PORT_NAMES, free_ports
from polarmask_serving.torchserve.probe import Target
from proxy_process import ProxyProcess, running_proxy
from started import started

FINDS_NOTHING = """
def initialize(self, context):
    self.model = {"name": "polarmask", "version": context.manifest["model"]["modelVersion"]}

def handle(self, rows, context):
    return [{"model": self.model, "instances": []}] * len(rows)
"""


def processes_of(marker):
    """Return processes whose command line has this text."""
    found = []
    for process in psutil.process_iter():
        try:
            if marker in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_gone(pod):
    assert not pod.is_running()
    assert not pod.is_ready()
    assert not processes_of(pod.scratch)
    assert not Path(pod.scratch).exists()


def version_at(pod, png):
    return requests.post(pod.url, data=png, timeout=60).json()["model"]["version"]


@pytest.mark.slow
def test_a_pod_answers_moves_to_the_port_of_another_and_stops_without_leftovers(
    archive_of_handler, png, tmp_path, monkeypatch
):
    monkeypatch.setenv("TS_CONFIG_FILE", "/nonexistent")  # must not win over our configuration
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not be asked for loopback
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # for this test's own requests
    old = LocalPod.start(archive_of_handler(FINDS_NOTHING, version="1"), tmp_path / "a long path")
    new = LocalPod.start(archive_of_handler(FINDS_NOTHING, version="2"), tmp_path / "2")
    try:
        assert [version_at(old, png), version_at(new, png)] == ["1", "2"]
        moved = seen_while(lambda: new.move(old.port), old.url, png, {"1", "2"})
        assert moved.url == old.url
        assert not new.is_ready()  # where it was
        seen_while(old.stop, moved.url, png, {"1", "2"})
        assert {version_at(moved, png) for _ in range(20)} == {"2"}
        third = archive_of_handler(FINDS_NOTHING, version="3")
        with pytest.raises(PortTakenError, match=str(moved.port)):
            LocalPod.prepare(third, tmp_path, port=moved.port)
    finally:
        old.stop()
        new.stop()
    for pod in (old, new, moved):
        assert_gone(pod)
    new.stop()  # stopping twice is stopping


def seen_while(act, url, png, expected):
    """Send requests while something is done; each is answered, by one of these versions."""
    seen, over = [], threading.Event()

    def send():
        while not over.is_set():
            answer = requests.post(url, data=png, timeout=60)
            seen.append(answer.json()["model"]["version"] if answer.ok else answer.text)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        outcome = act()
    finally:
        over.set()
        thread.join()
    assert seen
    assert set(seen) <= expected
    return outcome


BROKEN = {
    "does-not-load": (
        "def initialize(self, context): raise RuntimeError('weights are missing')\n"
        "def handle(self, rows, context): pass",
        "RuntimeError: weights are missing",
    ),
    "does-not-load-in-time": (
        "def initialize(self, context):\n    import time\n    time.sleep(60)\n"
        "def handle(self, rows, context): pass",
        "no answer after 5 s",
    ),
}


@pytest.mark.parametrize(("handler", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_does_not_come_up_is_explained_and_leaves_nothing(
    archive_of_handler, tmp_path, handler, reason
):
    archive = archive_of_handler(handler, version="bad")
    pod = LocalPod.prepare(archive, tmp_path)
    with pytest.raises(ServerError, match=f"version bad did not come up: .*{reason}"):
        pod.launch(archive, time_out=5 if "after 5 s" in reason else 60)
    assert_gone(pod)
    assert pod.log.exists()


def test_a_port_in_use_is_named(archive, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} is taken"):
            LocalPod.start(archive, tmp_path, port=port)


def test_a_port_that_torchserve_lost_to_another_program_is_told_apart(archive, tmp_path):
    pod = LocalPod.prepare(archive, tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = dict.fromkeys(PORT_NAMES, taken.getsockname()[1])
        Target(ports=ports, name="polarmask", version="1", workers=1).write(Path(pod.scratch))
        with pytest.raises(PortTakenError, match="Failed to bind"):
            pod.launch(archive)
    assert_gone(pod)


@pytest.mark.slow
def test_the_command_restarts_a_dead_server_and_ends_with_its_terminal(random_model, png, tmp_path):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "polarmask_serving", "serve", str(random_model)]
    command += ["--port", str(port)]
    scratch = tmp_path / ("long" * 25)  # a path of a Unix socket has at most 107 bytes
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    pipe = subprocess.PIPE
    with started(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        ready, line = process.stdout.readline(), process.stdout.readline()
        assert ready.startswith(f"ready: http://127.0.0.1:{port}/demo")
        url = re.search(r"curl .* (http://\S+)", line).group(1)
        assert requests.post(url, data=png, timeout=60).json()["instances"]

        second = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr == f"error: port {port} is taken; choose another one\n"

        (java,) = (each for each in processes_of("polarmask-serve-") if each.name() == "java")
        java.kill()
        assert "restarting" in process.stderr.readline()
        wait_for(lambda: answers(url, png), 120)

        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)  # an impatient user does not stop the clean-up
        assert process.communicate(timeout=60) == ("stopped\n", "")
        assert process.returncode == 0
    assert not processes_of(str(tmp_path))
    assert not list(scratch.glob("polarmask-*"))


def answers(url, png):
    try:
        return requests.post(url, data=png, timeout=60).ok
    except requests.ConnectionError:
        return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_pod_whose_worker_cannot_be_started_again_is_not_alive(archive_of_handler, tmp_path):
    broken = tmp_path / "broken"
    archive = archive_of_handler(
        f"def initialize(self, context):\n"
        f"    from pathlib import Path\n"
        f"    if Path({str(broken)!r}).exists(): raise OSError('weights')\n"
        f"def handle(self, rows, context): pass",
        version="1",
    )
    pod = LocalPod.start(archive, tmp_path)
    try:
        assert pod.is_alive()
        broken.touch()
        (java,) = (each for each in processes_of(pod.scratch) if each.name() == "java")
        for worker in java.children():
            worker.kill()
        wait_for(lambda: not pod.is_alive(), 60)
        assert pod.is_running()
        broken.unlink()
        pod.restart(archive)
        assert pod.is_alive()
    finally:
        pod.stop()
    assert_gone(pod)
    assert not pod.is_alive()


def test_a_port_of_one_proxy_refuses_a_second_one_that_starts_at_the_same_time(server, tmp_path):
    with running_proxy(tmp_path, server.target) as first:
        (tmp_path / "2").mkdir()
        port = int(first.url.rpartition(":")[2])
        second = ProxyProcess(tmp_path / "2", server.target, Limits(), port=port)
        assert second.process.wait(timeout=30) != 0
        assert "Address already in use" in second.log.read_text()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_what_is_no_port_is_refused(port, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "model", "--port", port])
    assert ended.value.code == 2
    assert f"--port: {port!r} is no port: 1 to 65535" in capsys.readouterr().err
