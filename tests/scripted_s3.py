"""An S3 server in memory that behaves as some real ones do, for tests of clients."""

import hashlib
import re
import socket
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptedS3:
    """Keeps objects, with conditional writes and ranges as AWS has them.

    Attributes:
        objects: Bytes by path.
        requests: (method, path) of each request.
        weak_tags: Mark ETags as weak in answers, as some proxies do; If-Match compares strongly.
        changed_tags: Answer with ETags that If-Match does not know.
        ignores_range: Answer each GET with the whole object.
        begins_at: First byte of the answer to a Range, instead of the one that was asked for.
        conflicts: Writes to refuse with 409, as AWS does while another write is in progress.
        refusal: (status, code) of every answer.
        cuts: Answers to cut after `cut_after` bytes.
        tls: (certificate, key) files; None for plain HTTP.
    """

    def __init__(self, tls=None):
        self.objects = {}
        self.requests = []
        self.weak_tags = self.changed_tags = self.ignores_range = False
        self.begins_at = self.refusal = None
        self.conflicts = self.cuts = self.cut_after = 0
        self._tls = tls
        self._lock = threading.Lock()

    @contextmanager
    def running(self):
        """Serve; yield the address."""
        handler = type("Handler", (_Handler,), {"store": self})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            scheme = "http"
            if self._tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*self._tls)
                server.socket = context.wrap_socket(
                    server.socket, server_side=True, do_handshake_on_connect=False
                )
                scheme = "https"
            server.handle_error = lambda *_: None  # clients that refuse a certificate hang up
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            try:
                yield f"{scheme}://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()
                thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        store = self.store
        store.requests.append(("GET", self.path))
        data = store.objects.get(self.path)
        if data is None or store.refusal:
            self._refuse(*(store.refusal or (404, "NoSuchKey")))
            return
        start, asked = 0, re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not store.ignores_range:
            start = int(asked[1]) if store.begins_at is None else store.begins_at
        self.send_response(206 if asked and not store.ignores_range else 200)
        if asked and not store.ignores_range:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        tag = _tag(data + b"another" * store.changed_tags)
        self.send_header("ETag", f"W/{tag}" if store.weak_tags else tag)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if store.cuts:
            store.cuts -= 1
            self.wfile.write(data[start : start + store.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def do_HEAD(self):
        self._refuse(*(self.store.refusal or (404, "NoSuchKey")))

    def do_PUT(self):
        store = self.store
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with store._lock:
            store.requests.append(("PUT", self.path))
            found = store.objects.get(self.path)
            expected = self.headers.get("If-Match")
            if store.conflicts:
                store.conflicts -= 1
                self._refuse(409, "ConditionalRequestConflict")
            elif (found is not None and self.headers.get("If-None-Match")) or (
                expected is not None and (found is None or _tag(found) != expected)
            ):
                self._refuse(412, "PreconditionFailed")
            else:
                store.objects[self.path] = body
                self._answer(200, b"", ETag=_tag(body))

    def do_DELETE(self):
        self.store.objects.pop(self.path, None)
        self._answer(204, b"")

    def _refuse(self, status, code):
        self._answer(
            status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        )

    def _answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Log nothing."""


def _tag(data):
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
