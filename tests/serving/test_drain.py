"""A proxy that goes away while clients keep their connections to it."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from keep_alive import KeepAliveClient, keep_asking
from polarmask_serving.proxy.drain import drain_proxy
from polarmask_serving.torchserve.probe import Target
from proxy_process import running_proxy
from scripted_server import ScriptedServer

PER_SECOND = 20
FORGET_SECONDS = 1.0
PATH = "/predictions/polarmask"


@pytest.fixture
def service(tmp_path):
    """Two pods' proxies; `address` is what new connections go to."""
    with ExitStack() as stack:
        server = stack.enter_context(ScriptedServer().running())
        kinds = ("inference_port", "management_port", "metrics_port")
        port = urlsplit(server.url).port
        target = Target(ports=dict.fromkeys(kinds, port), name="polarmask", version="1", workers=4)
        folders, addresses = [tmp_path / "old", tmp_path / "new"], []
        for folder in folders:
            folder.mkdir()
            proxy = stack.enter_context(running_proxy(folder, target, until=(200, 503)))
            url = urlsplit(proxy.url)
            addresses.append((url.hostname, url.port))
        yield SimpleNamespace(server=server, old=folders[0], addresses=addresses)


def test_keep_alive_clients_lose_nothing_when_a_pod_goes(service):
    known = [service.addresses[0]]  # until the cluster has forgotten the old pod
    clients = [KeepAliveClient(lambda: known[0], PATH, b"image") for _ in range(8)]
    forget = threading.Timer(0.6 + FORGET_SECONDS / 2, known.__setitem__, (0, service.addresses[1]))
    forget.start()
    with keep_asking(clients, per_second=PER_SECOND):
        time.sleep(0.6)
        started = time.monotonic()
        assert drain_proxy(service.old, forget_seconds=FORGET_SECONDS, time_out=5)
        assert time.monotonic() - started < FORGET_SECONDS + 2
        time.sleep(0.5)
    forget.join()
    answers = [answer for client in clients for answer in client.answers]
    assert len(answers) > PER_SECOND
    assert set(answers) == {200}
    assert all(client.closes for client in clients)


@contextmanager
def draining(folder, **options):
    """Drain a proxy during the block; it has to succeed."""
    with ThreadPoolExecutor() as pool:
        drained = pool.submit(drain_proxy, folder, **options)
        yield
        assert drained.result()


def refuses(address, seconds=5):
    """Return whether a port is closed soon: each of Envoy's threads closes its own socket."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(address).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.05)
    return False


def test_a_draining_proxy_still_takes_new_connections_and_says_close(service):
    client = KeepAliveClient(lambda: service.addresses[0], PATH, b"image")
    with draining(service.old, forget_seconds=1, time_out=5):
        time.sleep(0.3)
        client.ask()
    assert (client.answers, client.closes) == ([200], 1)
    assert refuses(service.addresses[0])


def test_the_answer_to_a_request_from_before_is_waited_for_and_says_close(service):
    head = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n".encode()
    with socket.create_connection(service.addresses[0]) as connection:
        connection.sendall(head + b"a")
        with draining(service.old, forget_seconds=0.1, time_out=5):
            time.sleep(1)
            connection.sendall(b"b")
            answer = connection.recv(65_536).lower()
            connection.close()
    assert answer.startswith(b"http/1.1 200")
    assert b"connection: close" in answer
