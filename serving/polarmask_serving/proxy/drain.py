"""End a pod so that no answer is lost; preStop of its two containers.

    POD_IP=10.0.0.7 python -m polarmask_serving.proxy.drain proxy --scratch /proxy
    POD_IP=10.0.0.7 python -m polarmask_serving.proxy.drain server

From now on the proxy says `Connection: close` with each answer. It waits until nobody connects to
it any more, closes its port, and stays until the last connection is closed. The server stays until
the proxy is gone. Both stop waiting in time to end by themselves.
"""

import argparse
import http.client
import socket
import time
from pathlib import Path

from polarmask_serving.proxy.config import ADMIN_SOCKET
from polarmask_serving.proxy.main import OPERATIONS_PORT
from polarmask_serving.torchserve import launch

_POLL_SECONDS = 0.1


class _AdminConnection(http.client.HTTPConnection):
    """Speaks to Envoy's administration at its socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _ask(path: Path, method: str, address: str) -> str:
    connection = _AdminConnection(path)
    try:
        connection.request(method, address)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def drain_proxy(scratch: Path, *, forget_seconds: float, time_out: float) -> bool:
    """Stop taking requests and wait until all connections are closed; return whether they are.

    A connection is closed with its next answer, or once it has been idle for 10 s. So a client
    never sends a request while its connection is being closed under it.

    Args:
        scratch: The proxy's folder.
        forget_seconds: Until all of the cluster knows that the pod goes.
        time_out: Seconds for the answers after that.
    """
    admin = scratch / ADMIN_SOCKET
    _ask(admin, "POST", "/drain_listeners?inboundonly&graceful&skip_exit")  # it still listens
    time.sleep(forget_seconds)
    _ask(admin, "POST", "/drain_listeners?inboundonly")
    deadline = time.monotonic() + time_out
    while time.monotonic() < deadline:
        stat = _ask(admin, "GET", "/stats?filter=^http.public.downstream_cx_active$")
        if stat.rpartition(":")[2].strip() == "0":
            return True
        time.sleep(_POLL_SECONDS)
    return False


def wait_for_proxy(host: str, *, time_out: float) -> bool:
    """Return once the proxy is gone; False if it still is there."""
    deadline = time.monotonic() + time_out
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, OPERATIONS_PORT), timeout=2).close()
        except OSError:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def main(arguments: list[str] | None = None) -> None:
    """Wait, as the part of the pod has to."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.proxy.drain", description=__doc__)
    parser.add_argument("part", choices=["proxy", "server"])
    parser.add_argument("--scratch", type=Path, help="the proxy's folder")
    parser.add_argument("--forget-seconds", type=float, default=10)
    parser.add_argument("--time-out", type=float, default=40)
    options = parser.parse_args(arguments)
    if options.part == "server":
        wait_for_proxy(launch.read_host(), time_out=options.forget_seconds + options.time_out + 2)
    else:
        if options.scratch is None:
            parser.error("the proxy needs --scratch")
        drain_proxy(
            options.scratch, forget_seconds=options.forget_seconds, time_out=options.time_out
        )


if __name__ == "__main__":
    main()
