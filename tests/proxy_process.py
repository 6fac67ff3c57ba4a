"""Envoy as a child of a test, in front of a server that listens on this machine."""

import subprocess
import time
from contextlib import contextmanager

import requests

from polarmask_serving.proxy.config import Front, Limits, write_config
from polarmask_serving.proxy.main import envoy_command
from polarmask_serving.torchserve.launch import free_ports


class ProxyProcess:
    """A running proxy.

    Attributes:
        url: Of clients; predictions are at `predict_url`.
        operations_url: Of the cluster's own programs.
        log: File.
        process: Of Envoy.
    """

    def __init__(self, folder, target, limits, *, port=None, **front):
        free = free_ports(2)
        front = Front(
            host="127.0.0.1", port=port or free[0], operations_port=free[1], folder=folder, **front
        )
        command = envoy_command(write_config(front, target, limits))
        scheme = "http" if front.tls is None else "https"
        self.url = f"{scheme}://{front.host}:{front.port}"
        self.predict_url = f"{self.url}/predictions/{target.name}"
        self.operations_url = f"http://{front.host}:{front.operations_port}"
        self.log = folder / "envoy.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def wait(self, *, until=(200,)):
        """Wait until health has one of these statuses."""
        deadline = time.monotonic() + 30
        while self.health() not in until:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def health(self):
        """Return the status of the health address; 0 while nobody listens there."""
        try:
            return requests.get(f"{self.operations_url}/healthz", timeout=10).status_code
        except requests.ConnectionError:
            return 0

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=10)


@contextmanager
def running_proxy(folder, target, limits=None, *, until=(200,), **front):
    """Start a proxy; see `proxy.config.Front` for the options."""
    proxy = ProxyProcess(folder, target, limits or Limits(), **front)
    try:
        proxy.wait(until=until)
        yield proxy
    finally:
        proxy.stop()
