"""The API server: HTTP for the store, with injected faults."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from kubernetes import client

from kube.access import bind
from kube.api import Api
from kube.errors import ApiError
from kube.faults import Faults
from kube.http_server import HttpServer
from kube.kinds import KINDS, definition_of, kind_of
from kube.logs import LogBook
from kube.store import Store


class KubeServer:
    """An API server on 127.0.0.1, for as long as its context lasts.

    Args:
        rules: Service accounts, each with the rules of its Role:
            `{"polarmask-pipeline": role["rules"]}`. Roles and bindings that are created later
            apply, too. A request without a token is the administrator's.
        namespace: Namespace of `create`, `find` and so on, and of the service accounts.
    """

    def __init__(self, rules=None, namespace="ml"):
        self.namespace = namespace
        self.store = Store()
        self.logs = LogBook()
        self.faults = Faults()
        self.requests = []  # "METHOD /path?query", in their order
        self.failures = []  # tracebacks of bugs in our own code
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
        if self.failures:
            raise AssertionError("\n".join(self.failures))

    def _listen(self, port):
        self._stopping = False
        self._http = HttpServer(port, self)
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
        """Be away like an API server that restarts: refuse connections, cut streams."""
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
        """Create an object without access rules and HTTP."""
        return self.store.create(kind, obj, self._where(kind, namespace))

    def get(self, kind, name, namespace=None):
        return self.store.get(kind, name, self._where(kind, namespace))

    def list(self, kind, labels="", fields="", namespace=None):
        where = self._where(kind, namespace)
        return self.store.list(kind, where, labels=labels, fields=fields)

    def update(self, kind, name, change, *, status=False, namespace=None):
        """Change the object in place with `change`; store its `status`, or all the rest."""
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
        """Wait until `condition()` is true, checking after every change; return its result.

        Raises:
            TimeoutError: It did not become true in `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout} s; events: {self.events()}")
            with self.store.changed:
                self.store.changed.wait(0.05)  # it may depend on more than objects
        return answer

    def events(self):
        """Return the Events of controllers: `Warning BackOff pod/x: ...`."""
        return [
            f"{each['type']} {each['reason']} {each['involvedObject']['kind'].lower()}/"
            f"{each['involvedObject']['name']}: {each['message']}"
            for each in self.store.list("Event")
        ]

    def _where(self, kind, namespace):
        if not kind_of(kind).namespaced:
            return ""
        return self.namespace if namespace is None else namespace
