"""A pod on this machine: found again, moved to another port, ended without leftovers."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import requests

from polarmask_serving.errors import PortTakenError, ServerError
from polarmask_serving.local_pod import LocalPod
from polarmask_serving.torchserve.launch import PORT_NAMES, free_ports
from polarmask_serving.torchserve.probe import Target

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


def test_the_command_serves_until_interrupted(random_model, png, tmp_path):
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "polarmask_serving", "serve", "--model", str(random_model)]
    scratch = tmp_path / ("long" * 25)  # a path of a Unix socket has at most 107 bytes
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [*command, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Shells let background jobs ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        ready, line = process.stdout.readline(), process.stdout.readline()
        assert ready.startswith("ready")
        url = re.search(r"curl .* (http://\S+)", line).group(1)
        assert requests.post(url, data=png, timeout=60).json()["instances"]
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("stopped\n", None)
        assert process.returncode == 0
    assert not processes_of(str(tmp_path))
    assert not list(scratch.glob("polarmask-*"))
