"""The serving container as its own processes: what it serves, whom it hears, what probes say."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import requests

from polarmask_serving import launch
from polarmask_serving.archive import read_archive
from polarmask_serving.errors import ServerError
from polarmask_serving.pod import prepare
from polarmask_serving.server_log import last_worker_error

MODULE = [sys.executable, "-m"]


class Pod:
    """A serving container with an address of its own."""

    def __init__(self, archive, folder, ip, **environment):
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.url = f"http://{ip}:8080"
        self.metrics_url = f"http://{ip}:8082/metrics"
        command = [*MODULE, "polarmask_serving.pod"]
        command += ["--archive", str(archive), "--scratch", str(self.scratch)]
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, "POD_IP": ip, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def probe(self):
        """Return the exit code of the readiness probe and what it says."""
        command = [*MODULE, "polarmask_serving.probe", "--scratch", str(self.scratch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr.strip()

    def wait_ready(self):
        deadline = time.monotonic() + 120
        while (answer := self.probe())[0]:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, answer
            time.sleep(0.2)

    def listening(self):
        """Return the addresses that the server's processes accept TCP connections at."""
        processes = [psutil.Process(self.process.pid)]
        processes += processes[0].children(recursive=True)
        return {
            (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
            for process in processes
            for each in process.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        }

    def end(self):
        self.process.kill()
        self.process.wait()
        launch.end_all(self.scratch, time_out=5)


@pytest.fixture
def start_pod(short_folder):
    """Return a function that starts a pod; all end with the test."""
    pods = []

    def start(archive, **options):
        pods.append(Pod(archive, short_folder, f"127.8.{os.getpid() % 250}.1", **options))
        return pods[-1]

    yield start
    for pod in pods:
        pod.end()


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for the names of sockets."""
    folder = launch.make_scratch()
    yield folder
    shutil.rmtree(folder)


def test_a_pod_answers_from_outside_with_the_archives_version_and_ends_when_asked(
    archive, png, start_pod
):
    pod = start_pod(archive.path, WORKERS="2")
    assert pod.probe()[0] == 1  # nothing is ready before it is
    pod.wait_ready()
    answer = requests.post(f"{pod.url}/predictions/polarmask", data=png, timeout=60).json()
    assert answer["model"] == {"name": "polarmask", "version": archive.version}
    assert "polarmask_instances" in requests.get(pod.metrics_url, timeout=10).text
    assert requests.get(f"{pod.url}/ping", timeout=10).ok

    reachable = {port for ip, port in pod.listening() if ip != "127.0.0.1"}
    assert reachable == {8080, 8082}
    workers = psutil.Process(pod.process.pid).children()
    assert len(workers) == 2

    pod.process.send_signal(signal.SIGTERM)  # reaches Java: it is the very process
    assert pod.process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_the_probe_fails_while_the_worker_is_dead_although_torchserve_says_healthy(
    archive_of_handler, start_pod
):
    broken = archive_of_handler(
        "def initialize(self, context): raise OSError('weights')\n"
        "def handle(self, rows, context): return rows",
        version="1",
    )
    pod = start_pod(broken.path)
    deadline = time.monotonic() + 60
    while not last_worker_error(pod.log.read_text().splitlines()).startswith("OSError: weights"):
        assert time.monotonic() < deadline
        code, said = pod.probe()
        assert code == 1
    assert "no worker" in said
    assert requests.get(f"{pod.url}/ping", timeout=10).ok


@pytest.mark.slow
def test_the_probe_fails_for_another_version_than_the_pods(archive_of_handler, start_pod):
    fine = "def initialize(self, context): pass\ndef handle(self, rows, context): return rows"
    pod = start_pod(archive_of_handler(fine, version="1").path)
    pod.wait_ready()
    expected = pod.scratch / "probe.json"
    expected.write_text(expected.read_text().replace('"version": "1"', '"version": "2"'))
    assert pod.probe() == (1, "polarmask 2 is not served: HTTP 404")


def test_a_pod_without_a_usable_archive_says_so_and_ends(tmp_path, start_pod):
    (tmp_path / "model.mar").write_bytes(b"no zip")
    pod = start_pod(tmp_path / "model.mar")
    assert pod.process.wait(timeout=30) == 2
    said = pod.log.read_text()
    assert said.startswith("error: ")
    assert "is no model archive" in said
    assert pod.probe()[1].startswith("no server has started")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({"POD_IP": ""}, "status.podIP", id="no-address"),
        pytest.param({"WORKERS": "many"}, "not a number", id="workers"),
        pytest.param({"WORKERS": "0"}, "1 or more", id="no-workers"),
    ],
)
def test_settings_that_cannot_work_are_named(archive, short_folder, environment, reason):
    command = [
        *MODULE,
        "polarmask_serving.pod",
        "--archive",
        archive.path,
        "--scratch",
        short_folder,
    ]
    environment = {**os.environ, "POD_IP": "127.0.0.1"} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_path_too_long_for_sockets_is_refused(archive, tmp_path):
    folder = Path(tmp_path / ("long" * 30))
    with pytest.raises(ServerError, match="too long"):
        prepare(read_archive(archive.path), folder, host="127.0.0.1", workers=1)
