"""The API server: HTTP around the store, with faults on order."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import yaml
from kubernetes import client

from kube.access import bind
from kube.api import Answer, Api, Request
from kube.errors import ApiError
from kube.faults import Fault, Faults
from kube.kinds import KINDS, definition_of, kind_of
from kube.logs import LogBook
from kube.store import Store


class KubeServer:
    """An API server on 127.0.0.1, for as long as its context lasts.

    Args:
        rules: Rules of a Role for each service account that shall exist:
            `{"polarmask-pipeline": role["rules"]}`. Roles and bindings that are created later
            count, too. Who brings no token is the administrator.
        namespace: Where `create`, `get` and so on work, and where service accounts live.
    """

    def __init__(self, rules=None, namespace="ml"):
        self.namespace = namespace
        self.store = Store()
        self.logs = LogBook()
        self.faults = Faults()
        self.requests = []  # "METHOD /path?query", in their order
        self._stopping = False
        self._clients = []
        self.api = Api(self.store, self.logs, namespace, lambda: self._stopping)
        for name in ("default", namespace):
            self.store.create("Namespace", {"metadata": {"name": name}}, "")
        for kind in KINDS:
            if kind.custom:
                self.store.create("CustomResourceDefinition", definition_of(kind), "")
        for account in ("default", *(rules or {})):
            self.create("ServiceAccount", {"metadata": {"name": account}})
        for account, granted in (rules or {}).items():
            bind(self.store, account, granted, namespace)

    def __enter__(self):
        self._listen(0)
        self._port = self._http.server_port
        self.url = f"http://127.0.0.1:{self._port}"
        return self

    def __exit__(self, *_):
        for each in self._clients:
            each.rest_client.pool_manager.clear()
            each.close()
        self._hang_up()

    def _listen(self, port):
        self._stopping = False
        self._http = _Http(("127.0.0.1", port), _handler_of(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _hang_up(self):
        self._stopping = True
        for condition in (self.store.changed, self.logs.changed):
            with condition:
                condition.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._http.cut_connections()
        self._thread.join()

    @contextmanager
    def outage(self):
        """Be gone, as an API server that restarts: connections are refused, streams cut."""
        self._hang_up()
        try:
            yield
        finally:
            self._listen(self._port)

    def api_client(self, account=""):
        """Return an official client of a service account, or of the administrator."""
        configuration = client.Configuration(host=self.url)
        configuration.retries = False
        if account:
            configuration.api_key = {"authorization": f"Bearer {account}"}
        self._clients.append(client.ApiClient(configuration))
        return self._clients[-1]

    def write_kubeconfig(self, path, account=""):
        """Write a kubeconfig for a service account or the administrator; return its path.

        kubectl sends no token over plain HTTP: use its `--as` to be a service account.
        """
        user = {"name": "user", "user": {"token": account} if account else {}}
        cluster = {"name": "tests", "cluster": {"server": self.url}}
        context = {"cluster": "tests", "user": "user", "namespace": self.namespace}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [cluster],
            "users": [user],
            "contexts": [{"name": "tests", "context": context}],
            "current-context": "tests",
        }
        Path(path).write_text(json.dumps(config))
        return Path(path)

    def create(self, kind, obj, namespace=None):
        """Create an object as nobody in particular: no access rules, no HTTP."""
        return self.store.create(kind, obj, self._where(kind, namespace))

    def get(self, kind, name, namespace=None):
        return self.store.get(kind, name, self._where(kind, namespace))

    def list(self, kind, labels="", fields="", namespace=None):
        where = self._where(kind, namespace)
        return self.store.list(kind, where, labels=labels, fields=fields)

    def update(self, kind, name, change, *, status=False, namespace=None):
        """Let `change` alter the object in place; `status` stores its status instead of the rest."""
        where = self._where(kind, namespace)
        return self.store.update(kind, name, where, change, status=status)

    def delete(self, kind, name, namespace=None, **options):
        """Delete an object; options as for `Store.delete`."""
        return self.store.delete(kind, name, self._where(kind, namespace), **options)

    def find(self, kind, name, namespace=None):
        """Return an object, or None."""
        with suppress(ApiError):
            return self.get(kind, name, namespace)
        return None

    def conditions(self, kind, name, namespace=None):
        """Return which conditions of an object are True; none if it is not there."""
        obj = self.find(kind, name, namespace) or {}
        conditions = obj.get("status", {}).get("conditions", [])
        return {each["type"] for each in conditions if each["status"] == "True"}

    def wait_for(self, condition, timeout=20.0):
        """Wait until `condition()` is true after some change; return what it returned.

        Raises:
            TimeoutError: It was not, in `timeout` seconds.
        """
        with self.store.changed:
            answer = self.store.changed.wait_for(condition, timeout)
        if not answer:
            raise TimeoutError(f"not within {timeout} s; events: {self.events()}")
        return answer

    def events(self):
        """Return what controllers reported: `Warning BackOff pod/x: ...`."""
        return [
            f"{each['type']} {each['reason']} {each['involvedObject']['kind'].lower()}/"
            f"{each['involvedObject']['name']}: {each['message']}"
            for each in self.store.list("Event")
        ]

    def _where(self, kind, namespace):
        if not kind_of(kind).namespaced:
            return ""
        return self.namespace if namespace is None else namespace


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments):
        self._connections = set()
        super().__init__(*arguments)

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
        """Say nothing of clients that went away."""


class _Cut(Exception):
    """A fault closes the connection."""


def _handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            """Print nothing: `server.requests` has it."""

        def serve(self):
            line = f"{self.command} {self.path}"
            server.requests.append(line)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = server.faults.strike(line) or Fault("")
            try:
                self._reply(self._answer(body, fault), fault)
            except _Cut:
                self.close_connection = True
            except OSError:  # the client went away
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = serve

        def _answer(self, body, fault):
            time.sleep(fault.delay)
            if fault.drop:
                raise _Cut
            try:
                if fault.status:
                    reason = {409: "Conflict", 429: "TooManyRequests"}.get(fault.status, "Fault")
                    raise ApiError(fault.status, reason, "a fault that the test ordered")
                answer = server.api.answer(self._request(body))
            except ApiError as error:
                answer = Answer(error.body(), status=error.status)
            if fault.lose_answer:
                raise _Cut
            return answer

        def _request(self, body):
            url = urlsplit(self.path)
            headers = self.headers
            return Request(
                method=self.command,
                path=url.path,
                query=dict(parse_qsl(url.query, keep_blank_values=True)),
                body=yaml.safe_load(body) if body[:1] not in (b"{", b"[") else json.loads(body),
                content_type=headers.get("Content-Type", ""),
                user=server.api.user_of(
                    headers.get("Authorization"), headers.get("Impersonate-User")
                ),
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
                    raise _Cut
                time.sleep(fault.line_delay)
                data = line.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            if fault.cut_after is not None:
                raise _Cut
            self.wfile.write(b"0\r\n\r\n")

    return Handler
