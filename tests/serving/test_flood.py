"""Many clients at once, polite and not: what they get, and what it costs in memory."""

import contextlib
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests

from polarmask_serving.proxy.config import Limits
from proxy_process import running_proxy

pytestmark = pytest.mark.slow
SECONDS = 60
CLIENTS = 64
MIB = 1024**2


@pytest.fixture
def flooded(server, tmp_path):
    """The limits as shipped, but for less time to upload."""
    with running_proxy(tmp_path, server.target, Limits(upload_seconds=5)) as proxy:
        yield proxy


class Memory(threading.Thread):
    """Keeps the most memory that each of the processes held."""

    def __init__(self, processes):
        super().__init__(daemon=True)
        self.most = dict.fromkeys(processes, 0)
        self._processes = processes
        self._over = threading.Event()

    def run(self):
        while not self._over.wait(0.05):
            for name, process in self._processes.items():
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.most[name] = max(self.most[name], process.memory_info().rss / MIB)

    def stop(self):
        self._over.set()
        self.join()
        return self.most


def test_a_flood_gets_four_kinds_of_answers_and_memory_stays_bounded(flooded, server, jpeg):
    url = f"{flooded.url}/predictions/polarmask"
    port = int(flooded.url.rsplit(":", 1)[1])
    deadline = time.monotonic() + SECONDS
    padded = jpeg + bytes(18 * MIB)  # decoders stop at the end of the image

    def post(body):
        # A refusal may come while the body is still on its way: then the sender is cut off.
        return str(requests.post(url, data=body, timeout=90).status_code)

    def send_slowly():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            head = "POST /predictions/polarmask HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n"
            connection.sendall(head.encode())
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(30):
                    connection.sendall(b"x")
                    time.sleep(0.2)
            return connection.recv(100).split(b" ")[1].decode()

    def disconnect():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            head = f"POST /predictions/polarmask HTTP/1.1\r\nHost: a\r\nContent-Length: {len(jpeg)}"
            connection.sendall(head.encode() + b"\r\n\r\n" + jpeg)
        return "gone"

    ways = {
        "image": lambda: post(jpeg),
        "large": lambda: post(padded),
        "too large": lambda: post(bytes(21 * MIB)),
        "too large, in chunks": lambda: post(bytes(MIB) for _ in range(30)),
        "slow": send_slowly,
        "disconnects": disconnect,
    }

    def client(seed):
        choose = random.Random(seed)
        seen = []
        while time.monotonic() < deadline:
            name = choose.choice(list(ways))
            seen.append((name, ways[name]()))
        return seen

    java = psutil.Process(server.pid)
    processes = {"envoy": psutil.Process(flooded.process.pid), "java": java}
    processes |= {f"worker {each.pid}": each for each in java.children(recursive=True)}
    before = {name: process.memory_info().rss / MIB for name, process in processes.items()}
    memory = Memory(processes)
    memory.start()
    with ThreadPoolExecutor(CLIENTS) as clients:
        seen = Counter(each for own in clients.map(client, range(CLIENTS)) for each in own)
    most = memory.stop()
    figures = f"answers {dict(seen)}\nMiB before {before}\nMiB at most {most}"
    print(f"\n{figures}")  # noqa: T201 the README's figures; `pytest -s` shows them

    assert {status for _, status in seen} <= {"200", "413", "408", "503", "gone"}
    for name, status in {"image": "200", "too large": "413", "slow": "408"}.items():
        assert seen[name, status]
    assert most["envoy"] < 1024  # the limit of its container
    assert most["java"] < 900  # its heap of 512 MiB full, and what Java needs beside it
    for name in processes:
        if name.startswith("worker"):
            assert most[name] < before[name] + 300
    assert set(processes.values()) == {*psutil.Process(server.pid).children(True), java} | {
        processes["envoy"]
    }, "a worker died"
    assert requests.post(url, data=jpeg, timeout=60).ok
