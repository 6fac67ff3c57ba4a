"""HTTP for the API: requests, responses, streams, injected faults."""

import json
import socket
import time
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import yaml

from kube.api import Answer, Request
from kube.errors import ApiError
from kube.faults import Fault


class HttpServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1; remembers its connections, so that they can be cut.

    Args:
        port: The port, 0 for a free one.
        kube: The `KubeServer` with `api`, `faults`, `requests` and `failures`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port, kube):
        self.kube = kube
        self._connections = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request, client_address):
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self):
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Ignore clients that disconnected."""


class _CutError(Exception):
    """The connection is closed without a response."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """Print nothing: the server records its `requests`."""

    def serve(self):
        line = f"{self.command} {self.path}"
        kube = self.server.kube
        kube.requests.append(line)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = kube.faults.strike(line) or Fault("")
        try:
            self._reply(self._answer(body, fault), fault)
        except (_CutError, OSError):  # or the client went away
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

    def _answer(self, body, fault):
        kube = self.server.kube
        time.sleep(fault.delay)
        if fault.drop:
            raise _CutError
        try:
            if fault.status:
                reason = {409: "Conflict", 429: "TooManyRequests"}.get(fault.status, "Fault")
                raise ApiError(fault.status, reason, "an injected fault")
            answer = kube.api.answer(self._request(body))
        except ApiError as error:
            answer = Answer(error.body(), status=error.status)
        except Exception:  # our own bug: reported to the test, whatever the client does
            kube.failures.append(f"{self.command} {self.path}: {traceback.format_exc()}")
            raise _CutError from None
        if fault.lose_answer:
            raise _CutError
        return answer

    def _request(self, body):
        url = urlsplit(self.path)
        headers = self.headers
        content_type = headers.get("Content-Type", "")
        asks = headers.get("Authorization"), headers.get("Impersonate-User")
        return Request(
            method=self.command,
            path=url.path,
            query=dict(parse_qsl(url.query, keep_blank_values=True)),
            body=_parsed(body, content_type),
            content_type=content_type,
            user=self.server.kube.api.user_of(*asks),
        )

    def _reply(self, answer, fault):
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if answer.lines is None:
            data = json.dumps(answer.body).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(answer.lines):
            if number == fault.cut_after:
                raise _CutError
            time.sleep(fault.line_delay)
            data = line.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        if fault.cut_after is not None:
            raise _CutError
        self.wfile.write(b"0\r\n\r\n")


def _parsed(body, content_type):
    if "protobuf" in content_type:  # some of kubectl's own subcommands, `auth can-i` for one
        message = "the body of the request was in an unknown format: this server speaks JSON"
        raise ApiError(415, "UnsupportedMediaType", message)
    try:
        return yaml.safe_load(body) if "yaml" in content_type else json.loads(body or b"null")
    except (ValueError, yaml.YAMLError) as error:
        raise ApiError(400, "BadRequest", f"the body of the request is not JSON: {error}") from None
