"""A plain keep-alive client, as small programs have it: all requests use one connection.

It opens a new connection only when an answer said `Connection: close`. It never retries.
"""

import http.client
import threading
import time
from contextlib import contextmanager


class KeepAliveClient:
    """Sends a request every so often over one connection.

    Args:
        address: Function that returns (host, port) when it connects.
        path: Of the requests.
        body: Of each.
        headers: Of each.
    """

    def __init__(self, address, path, body, headers=None):
        self._address, self._path, self._body = address, path, body
        self._headers = headers or {}
        self._connection = None
        self.answers = []
        """Status, or what broke, by request."""
        self.closes = 0
        """How often the server asked for a new connection."""

    def ask(self):
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address(), timeout=20)
            self._connection.connect()
            self._connection.auto_open = 0  # else it would reconnect by itself
        try:
            self._connection.request("POST", self._path, self._body, self._headers)
            answer = self._connection.getresponse()
            answer.read()
            self.answers.append(answer.status)
            closes = answer.will_close
        except (OSError, http.client.HTTPException) as error:
            self.answers.append(repr(error))
            closes = True
        else:
            self.closes += closes
        if closes:
            self.close()

    def close(self):
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@contextmanager
def keep_asking(clients, *, per_second):
    """Let each client ask, together so often, until the block ends."""
    over = threading.Event()

    def run(client, delay):
        over.wait(delay)
        next_one = time.monotonic()
        while not over.is_set():
            client.ask()
            next_one += len(clients) / per_second
            over.wait(max(0, next_one - time.monotonic()))

    threads = [
        threading.Thread(target=run, args=(client, number / per_second))
        for number, client in enumerate(clients)
    ]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()
        for each in clients:
            each.close()
