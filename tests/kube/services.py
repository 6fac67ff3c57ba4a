"""Services: one address each; TCP connections go to ready pods that do not terminate."""

import itertools
import random
import socket
import socketserver
import struct
import threading
import time
from contextlib import suppress

from kube.controller import Controller, is_true
from kube.selectors import matches_map

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST, like a refused connection


class ServiceProxy(Controller):
    """Gives Services a cluster IP of 127.x and forwards connections, as kube-proxy does.

    A connection goes to one pod that was ready and not terminating when it was made; it lasts
    until one side ends it. Ports below 1024 need permission.

    Args:
        server: The `KubeServer`.
        lag: Seconds until a change of the pods reaches the proxy; usual in clusters,
            and the reason why pods sleep before they stop.
    """

    name = "kube-proxy"

    def __init__(self, server, lag=0.0):
        super().__init__(server)
        self.lag = lag
        self._forwarders = {}  # (namespace, name, port) -> _Forwarder
        network = f"127.{random.randrange(16, 255)}.{random.randrange(256)}"
        self._addresses = (f"{network}.{host}" for host in itertools.cycle(range(1, 255)))

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for each in self._forwarders.values():
            each.close()

    def reconcile(self):
        time.sleep(self.lag)
        services = [
            each
            for each in self.server.store.list("Service")
            if each["spec"].get("clusterIP") != "None" and each["spec"].get("selector")
        ]
        wanted = {}
        for service in services:
            meta, spec = service["metadata"], service["spec"]
            address = spec.get("clusterIP") or self._give_address(meta)
            for port in spec["ports"]:
                wanted[meta["namespace"], meta["name"], port["port"]] = (address, service, port)
        for key in self._forwarders.keys() - wanted.keys():
            self._forwarders.pop(key).close()
        for key, (address, service, port) in wanted.items():
            if key not in self._forwarders:
                self._forwarders[key] = _Forwarder(address, port["port"])
            self._forwarders[key].targets = self._targets(service, port)

    def _give_address(self, meta):
        address = next(self._addresses)
        self.server.update(
            *("Service", meta["name"], lambda obj: obj["spec"].update(clusterIP=address)),
            namespace=meta["namespace"],
        )
        return address

    def _targets(self, service, port):
        """Return (address, port) of each pod that may get connections."""
        wanted = port.get("targetPort", port["port"])
        return [
            (pod["status"]["podIP"], _number(pod, wanted))
            for pod in self.server.list("Pod", namespace=service["metadata"]["namespace"])
            if matches_map(service["spec"]["selector"], pod["metadata"].get("labels"))
            and is_true(pod, "Ready")
            and "deletionTimestamp" not in pod["metadata"]
        ]


def _number(pod, port):
    if isinstance(port, int):
        return port
    ports = (each for c in pod["spec"]["containers"] for each in c.get("ports", []))
    return next(each["containerPort"] for each in ports if each.get("name") == port)


class _Forwarder(socketserver.ThreadingTCPServer):
    """Listens at one port of a Service; `targets` may change at any time."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address, port):
        self.targets = []
        self._open = set()
        super().__init__((address, port), None)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def finish_request(self, request, client_address):
        """Copy bytes both ways until both sides closed."""
        targets = self.targets
        try:
            if not targets:
                raise ConnectionRefusedError
            pod = socket.create_connection(random.choice(targets), timeout=5)
        except OSError:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            return
        pod.settimeout(None)
        self._open |= {request, pod}
        back = threading.Thread(target=_carry, args=(pod, request), daemon=True)
        back.start()
        _carry(request, pod)
        back.join()
        self._open -= {request, pod}
        pod.close()

    def shutdown_request(self, request):
        """Close with a reset if the handler requested one."""
        request.close()

    def close(self):
        self.shutdown()
        self.server_close()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def handle_error(self, request, client_address):
        """Ignore sides that disconnected."""


def _carry(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:  # one side died: reset the other
        for each in (source, target):
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                each.shutdown(socket.SHUT_RDWR)
        return
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
