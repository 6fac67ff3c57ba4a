"""A server that misbehaves on demand, for tests of clients."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FOUND = {
    "image": {"height": 8, "width": 8},
    "model": {"name": "polarmask", "version": "1"},
    "instances": [],
}


class ScriptedServer:
    """Answers requests in turn from its script, and the rest with no instances.

    Attributes:
        script: (status, headers, body), "reset", "stall" (half a body and then nothing) or "drip"
            (a header byte by byte), one for each request to come.
        seen: (path, headers) of each request.
        bodies: What each request sent.
    """

    def __init__(self):
        self.script = []
        self.seen = []
        self.bodies = []
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @contextmanager
    def running(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                """Say what TorchServe's management says of a worker that is ready."""
                self.send_response(200)
                body = b'[{"workers": [{"status": "READY"}]}]'
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self):
                sent = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._lock:
                    outer.bodies.append(sent)
                    outer.seen.append((self.path, dict(self.headers)))
                    reply = outer.script.pop(0) if outer.script else (200, {}, FOUND)
                if reply in ("stall", "drip"):
                    self.close_connection = True
                    self.never_end(reply)
                    return
                if reply == "reset":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, headers, content = reply
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def never_end(self, reply):
                head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n"
                self.wfile.write(head + (b"\r\nhalf" if reply == "stall" else b"X-Slow: "))
                while not outer._ended.wait(0.02):
                    if reply == "drip":
                        self.wfile.write(b".")

            def log_message(self, *_):
                """Log nothing."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_port}/predictions/polarmask"
            try:
                yield self
            finally:
                self._ended.set()
                server.shutdown()
                thread.join()
