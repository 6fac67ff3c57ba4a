"""The two programs of a serving pod: what they serve, where they listen, what probes answer."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from polarmask_serving.archive.read import read_archive
from polarmask_serving.errors import ServerError
from polarmask_serving.torchserve.pod import prepare
from polarmask_serving.torchserve.server_log import last_worker_error

MODULE = [sys.executable, "-m"]


class Pod:
    """The two containers of a serving pod, with an address of its own."""

    def __init__(self, archive, folder, ip, *, tokens=None, **environment):
        self.scratch = folder / "scratch"
        self.proxy_scratch = folder / "proxy"
        self.scratch.mkdir()
        self.proxy_scratch.mkdir()
        self.ip = ip
        self.url = f"http://{ip}:8080"
        self.operations_url = f"http://{ip}:8082"
        self.environment = {**os.environ, "POD_IP": ip, **environment}
        self.workers = []
        self.log, self.proxy_log = folder / "log", folder / "proxy.log"
        command = ["polarmask_serving.torchserve.pod", "--archive", str(archive)]
        self.process = self._start([*command, "--scratch", str(self.scratch)], self.log)
        command = ["polarmask_serving.proxy.main", "--server", str(self.scratch)]
        command += [] if tokens is None else ["--tokens", str(tokens)]
        self.proxy = self._start([*command, "--scratch", str(self.proxy_scratch)], self.proxy_log)

    def _start(self, command, log):
        with log.open("w") as stream:
            return subprocess.Popen(
                [*MODULE, *command], env=self.environment, stdout=stream, stderr=subprocess.STDOUT
            )

    def probe(self):
        """Return the exit code of the readiness probe and what it says."""
        command = [*MODULE, "polarmask_serving.torchserve.probe", "--scratch", str(self.scratch)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr.strip()

    def health(self):
        """Return the status of the health address; 0 while nobody listens there."""
        try:
            return requests.get(f"{self.operations_url}/healthz", timeout=10).status_code
        except requests.ConnectionError:
            return 0

    def wait_ready(self):
        deadline = time.monotonic() + 120
        while self.health() != 200:
            assert self.process.poll() is None, self.log.read_text()
            assert self.proxy.poll() is None, self.proxy_log.read_text()
            assert time.monotonic() < deadline, self.probe()
            time.sleep(0.2)

    def listening(self):
        """Return the addresses that the pod's processes accept TCP connections at."""
        processes = [psutil.Process(self.process.pid), psutil.Process(self.proxy.pid)]
        processes += processes[0].children(recursive=True)
        return {
            (each.laddr.ip.removeprefix("::ffff:"), each.laddr.port)
            for process in processes
            for each in process.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN
        }

    def stop(self):
        """End it as the kubelet does: both hooks at once, each followed by its SIGTERM."""

        def end(process, *arguments):
            command = [
                *MODULE,
                "polarmask_serving.proxy.drain",
                *arguments,
                "--forget-seconds",
                "0.5",
            ]
            subprocess.run(command, env=self.environment, check=True, timeout=60)
            process.send_signal(signal.SIGTERM)
            return process.wait(timeout=20)

        with ThreadPoolExecutor() as pool:
            proxy = pool.submit(end, self.proxy, "proxy", "--scratch", str(self.proxy_scratch))
            server = pool.submit(end, self.process, "server")
        return server.result(), proxy.result()

    def end(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            self.workers = psutil.Process(self.process.pid).children()
        for process in (self.process, self.proxy):
            process.kill()
            process.wait()
        psutil.wait_procs(self.workers, timeout=10)


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
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_pod_answers_through_its_proxy_alone_and_loses_no_answer_when_it_ends(
    archive, png, start_pod
):
    pod = start_pod(archive.path, WORKERS="2")
    assert pod.probe()[0] == 1  # nothing is ready before it is
    pod.wait_ready()
    ask = functools.partial(requests.post, f"{pod.url}/predictions/polarmask", timeout=60)
    assert ask(data=png).json()["model"] == {"name": "polarmask", "version": archive.version}
    assert "polarmask_instances" in requests.get(f"{pod.operations_url}/metrics", timeout=10).text
    assert "envoy_http" in requests.get(f"{pod.operations_url}/metrics/proxy", timeout=10).text

    outside = {(ip, port) for ip, port in pod.listening() if ip != "127.0.0.1"}
    assert outside == {(pod.ip, 8080), (pod.ip, 8082)}
    for url in (pod.url, pod.operations_url):
        for path in ("/workflows?url=x", "/models?url=x.mar", "/models", "/stats", "/quitquitquit"):
            refused = requests.post(url + path, timeout=10)
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")

    workers = psutil.Process(pod.process.pid).children()
    assert len(workers) == 2
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, data=png) for _ in range(8)]
        time.sleep(0.05)
        assert pod.stop()[0] == 128 + signal.SIGTERM
    assert {each.result().status_code for each in asked} == {200}
    assert not psutil.wait_procs(workers, timeout=10)[1]


@pytest.mark.slow
def test_the_probe_fails_and_so_does_health_while_the_worker_is_dead(archive_of_handler, start_pod):
    broken = archive_of_handler(
        "def initialize(self, context): raise OSError('weights')\n"
        "def handle(self, rows, context): return rows",
        version="1",
    )
    pod = start_pod(broken.path)
    deadline = time.monotonic() + 60
    while not last_worker_error(pod.log.read_text().splitlines()).startswith("OSError: weights"):
        assert time.monotonic() < deadline
        code, text = pod.probe()
        assert code == 1
    assert "no worker" in text
    assert pod.health() == 503


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
    log = pod.log.read_text()
    assert log.startswith("error: ")
    assert "is no model archive" in log
    assert pod.probe()[1].startswith("no server has started")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        pytest.param({"WORKERS": "many"}, "not a number", id="workers"),
        pytest.param({"WORKERS": "0"}, "1 or more", id="no-workers"),
    ],
)
def test_settings_that_cannot_work_are_named(archive, short_folder, environment, reason):
    command = [
        *MODULE,
        "polarmask_serving.torchserve.pod",
        "--archive",
        archive.path,
        "--scratch",
        short_folder,
    ]
    environment = os.environ | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_path_too_long_for_sockets_is_refused(archive, tmp_path):
    folder = Path(tmp_path / ("long" * 30))
    with pytest.raises(ServerError, match="too long"):
        prepare(read_archive(archive.path), folder, workers=1)
