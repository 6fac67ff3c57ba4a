"""Kubeflow Pipelines' REST API v2beta1 in memory, for the real `kfp.Client` over real HTTP.

with KfpServer() as server:
    client = kfp.Client(host=server.url)

It stores and refuses as the real server does (see `kfp_rules`); a test sets the state of runs. A
recurring run owns the runs that it started: unless it is deleted with ORPHAN, their workflows go
with it.
"""

import json
import re
import threading
import uuid
from datetime import UTC, datetime
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from kube.faults import Fault, Faults
from kube.kfp_rules import (
    BODIES,
    QUERIES,
    RefusalError,
    check_body,
    check_parameters,
    check_recurring_run,
    read_package,
)
from kube.kfp_tasks import failed_tasks

_PREFIX = "/apis/v2beta1"
_PAGE_SIZE, _MAX_PAGE_SIZE = 20, 200


class KfpServer:
    """One API server on a free port of 127.0.0.1.

    Attributes:
        requests: `METHOD /path` of all requests so far.
        faults: See `kube.faults`; there are no streams here.
        login_page: Whether a login page answers all requests.
        can_orphan: Whether it knows `propagation_policy`, as since 2.16; before, the option is
            ignored, as all query parameters that the server does not know.
        terminated: State in which a run ends that somebody terminated. Nothing in the sources of
            2.17 sets CANCELED for a run of Argo's; the protocol has it.
        experiments, pipelines, versions, runs, recurring_runs: By id, as the API shows them.
    """

    def __init__(self, *, multi_user=False, token=""):
        self.multi_user = multi_user
        self.token = token
        self.requests = []
        self.faults = Faults()
        self.login_page = False
        self.can_orphan = True
        self.terminated = "FAILED"
        self.experiments, self.pipelines, self.versions = {}, {}, {}
        self.runs, self.recurring_runs = {}, {}
        self._packages = {}
        self._lock = threading.RLock()
        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"kfp": self})
        )
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def set_state(self, run_id, state, *, failed=(), succeeded=(), error=""):
        """Set the state of a run.

        Args:
            run_id: Of the run.
            state: Its state.
            failed: Steps that failed, the first one first; the real server also lists all levels
                of the graph around them.
            succeeded: Names of entries, as the server lists them, that succeeded.
            error: Of the run; the real server gives none when a step fails.
        """
        with self._lock:
            run = self.runs[run_id]
            run["state"] = state
            version = run["pipeline_version_reference"]["pipeline_version_id"]
            tasks = failed_tasks(self._packages[version], failed, run_id)
            tasks += [
                {"run_id": run_id, "task_id": name, "display_name": name, "state": "SUCCEEDED"}
                for name in succeeded
            ]
            run["run_details"] = {"task_details": tasks}
            if error:
                run["error"] = {"code": 13, "message": error}

    def start_scheduled_run(self, recurring_run_id):
        """Start a run as the schedule would when its time comes; return its id."""
        with self._lock:
            schedule = self.recurring_runs[recurring_run_id]
            assert schedule["mode"] == "ENABLE"
            shared = ("experiment_id", "pipeline_version_reference", "runtime_config")
            run = {key: schedule[key] for key in shared if key in schedule}
            run |= {"display_name": "scheduled", "recurring_run_id": recurring_run_id}
            return self._add(self.runs, "run_id", run | {"state": "RUNNING"})["run_id"]

    def changes(self):
        """Return the requests that change something."""
        return [each for each in self.requests if not each.startswith("GET")]

    # One method per request; see `_ROUTES`.

    def healthz(self, **_):
        return {"multi_user": True} if self.multi_user else {}

    def list_of(self, key, *, query, parent=None):
        unknown = set(query) - QUERIES[key]
        if unknown:
            raise RefusalError(400, f"unknown query parameter {unknown.pop()}")
        if self.multi_user and key == "experiments" and not query.get("namespace"):
            raise RefusalError(
                400, "An experiment cannot have an empty namespace in multi-user mode"
            )
        table = {
            "experiments": self.experiments,
            "pipelines": self.pipelines,
            "pipeline_versions": self.versions,
            "runs": self.runs,
            "recurringRuns": self.recurring_runs,
        }[key]
        wanted = {name: query[name] for name in ("experiment_id", "namespace") if query.get(name)}
        if not self.multi_user:
            wanted.pop("namespace", None)
        if parent is not None:
            wanted["pipeline_id"] = parent
        found = [each for each in table.values() if wanted.items() <= each.items()]
        found = [each for each in found if _passes(query.get("filter"), each)]
        size = min(int(query.get("page_size") or _PAGE_SIZE), _MAX_PAGE_SIZE)
        begin = int(query.get("page_token") or 0)
        more = {"next_page_token": str(begin + size)} if begin + size < len(found) else {}
        page = {key: found[begin : begin + size], "total_size": len(found)} if found else {}
        return page | more  # as protobuf, which omits empty fields

    def one_of(self, kind, identity, **_):
        table = getattr(self, kind)
        if identity not in table:
            raise RefusalError(404, f"ResourceNotFoundError: {kind} {identity} not found")
        return table[identity]

    def create_experiment(self, *, body, **_):
        check_body(body, BODIES["experiment"], "experiment")
        if self.multi_user and not body.get("namespace"):
            raise RefusalError(
                400, "An experiment cannot have an empty namespace in multi-user mode"
            )
        self._refuse_second(self.experiments, body, "display_name", "namespace")
        return self._add(self.experiments, "experiment_id", {**body, "storage_state": "AVAILABLE"})

    def create_pipeline(self, *, body, **_):
        check_body(body, BODIES["pipeline"], "pipeline")
        if not body.get("name"):
            raise RefusalError(400, "pipeline's name cannot be empty")
        self._refuse_second(self.pipelines, body, "name", "namespace")
        return self._add(self.pipelines, "pipeline_id", {"display_name": body["name"], **body})

    def upload_version(self, *, query, upload, **_):
        unknown = set(query) - QUERIES["upload_version"]
        if unknown or upload is None:
            raise RefusalError(400, f"unknown query parameters {unknown}, or no file")
        self.one_of("pipelines", query.get("pipelineid", ""))
        package = read_package(upload)
        version = {"pipeline_id": query["pipelineid"], "name": query["name"]}
        self._refuse_second(self.versions, version, "pipeline_id", "name")
        version["display_name"] = query.get("display_name") or query["name"]
        added = self._add(self.versions, "pipeline_version_id", version)
        self._packages[added["pipeline_version_id"]] = package
        return added

    def create_run(self, *, body, **_):
        check_body(body, BODIES["run"], "run")
        self._check_reference(body)
        return self._add(self.runs, "run_id", {**body, "state": "PENDING"})

    def get_run(self, run_id, **_):
        run = dict(self.one_of("runs", run_id))
        if run["state"] == "CANCELING":  # its pods have ended by the next look
            self.runs[run_id]["state"] = self.terminated
        return run

    def terminate_run(self, run_id, **_):
        self.set_state(run_id, "CANCELING", failed=["train"])
        return {}

    def create_recurring_run(self, *, body, **_):
        check_body(body, BODIES["recurring_run"], "recurring_run")
        check_recurring_run(body)
        self._check_reference(body)
        return self._add(self.recurring_runs, "recurring_run_id", dict(body))

    def delete_recurring_run(self, identity, *, query, **_):
        policy = query.get("propagation_policy", "") if self.can_orphan else ""
        if policy not in ("", "FOREGROUND", "BACKGROUND", "ORPHAN"):
            raise RefusalError(
                400, f'parsing field "propagation_policy": "{policy}" is not a valid value'
            )
        self.one_of("recurring_runs", identity)
        del self.recurring_runs[identity]
        for run in self.runs.values():
            is_owned = run.get("recurring_run_id") == identity and policy != "ORPHAN"
            if is_owned and run["state"] in ("PENDING", "RUNNING"):
                run["state"] = "FAILED"
        return {}

    def switch_recurring_run(self, identity, mode, **_):
        self.one_of("recurring_runs", identity)["mode"] = mode.upper()
        return {}

    def _check_reference(self, body):
        if not body.get("display_name"):
            raise RefusalError(400, "Recurring run name is empty. Please specify a valid name")
        self.one_of("experiments", body.get("experiment_id", ""))
        reference = body.get("pipeline_version_reference") or {}
        version = self.one_of("versions", reference.get("pipeline_version_id", ""))
        if version["pipeline_id"] != reference.get("pipeline_id"):
            raise RefusalError(400, "the pipeline version is of another pipeline")
        given = body.get("runtime_config", {}).get("parameters", {})
        check_parameters(self._packages[version["pipeline_version_id"]], given)

    def _add(self, table, key, content):
        content |= {key: str(uuid.uuid4()), "created_at": datetime.now(UTC).isoformat()}
        table[content[key]] = content
        return content

    def _refuse_second(self, table, body, *keys):
        same = [all(each.get(key) == body.get(key) for key in keys) for each in table.values()]
        if any(same):
            raise RefusalError(409, f"AlreadyExistError: {[body.get(key) for key in keys]}")

    def answer(self, method, path, query, body, upload):
        """Return the response, or raise RefusalError."""
        for wanted, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, path.removeprefix(_PREFIX))
            if method == wanted and found and path.startswith(_PREFIX):
                with self._lock:
                    return handle(self, *found.groups(), query=query, body=body, upload=upload)
        raise RefusalError(404, f"no such API: {method} {path}")


def _lister(key):
    return lambda server, *parent, query, **_: server.list_of(
        key, query=query, parent=parent[0] if parent else None
    )


def _getter(kind):
    return lambda server, *path, **_: server.one_of(kind, path[-1])


_ID = "([^/:]+)"
_ROUTES = (
    ("GET", "/healthz", KfpServer.healthz),
    ("GET", "/experiments", _lister("experiments")),
    ("POST", "/experiments", KfpServer.create_experiment),
    ("GET", f"/experiments/{_ID}", _getter("experiments")),
    ("GET", "/pipelines", _lister("pipelines")),
    ("POST", "/pipelines", KfpServer.create_pipeline),
    ("POST", "/pipelines/upload_version", KfpServer.upload_version),
    ("GET", f"/pipelines/{_ID}", _getter("pipelines")),
    ("GET", f"/pipelines/{_ID}/versions", _lister("pipeline_versions")),
    ("GET", f"/pipelines/{_ID}/versions/{_ID}", _getter("versions")),
    ("GET", "/runs", _lister("runs")),
    ("POST", "/runs", KfpServer.create_run),
    ("GET", f"/runs/{_ID}", KfpServer.get_run),
    ("POST", f"/runs/{_ID}:terminate", KfpServer.terminate_run),
    ("GET", "/recurringruns", _lister("recurringRuns")),
    ("POST", "/recurringruns", KfpServer.create_recurring_run),
    ("GET", f"/recurringruns/{_ID}", _getter("recurring_runs")),
    ("DELETE", f"/recurringruns/{_ID}", KfpServer.delete_recurring_run),
    ("POST", f"/recurringruns/{_ID}:(enable|disable)", KfpServer.switch_recurring_run),
)


def _passes(filter_text, item):
    if not filter_text:
        return True
    operations = {1: "EQUALS", 9: "IS_SUBSTRING"}
    for predicate in json.loads(filter_text)["predicates"]:
        value = predicate.get("stringValue") or predicate.get("string_value")
        has = item.get(predicate["key"], "")
        operation = operations.get(predicate["operation"], predicate["operation"])
        if not {"EQUALS": has == value, "IS_SUBSTRING": value in has}[operation]:
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    kfp: KfpServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_POST = do_DELETE = do_PATCH = do_GET

    def _serve(self):
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what = f"{self.command} {url.path}"
        self.kfp.requests.append(what)
        fault = self.kfp.faults.strike(what) or Fault("")
        if fault.drop:
            self.close_connection = True
            return
        try:
            if fault.status:
                raise RefusalError(fault.status, "an injected fault")
            status, content = 200, json.dumps(self._answer(url, raw))
        except RefusalError as refusal:
            status, content = refusal.status, json.dumps(_refusal_body(refusal, url.path))
        if fault.lose_answer:
            self.close_connection = True
        elif self.kfp.login_page:
            self._say(200, "<html>Log in</html>")
        else:
            self._say(status, content)

    def _answer(self, url, raw):
        if self.kfp.token and self.headers.get("Authorization") != f"Bearer {self.kfp.token}":
            raise RefusalError(401, "Request header error: there is no user identity header")
        body = upload = None
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            upload = _uploaded_file(kind, raw)
        elif raw:
            body = json.loads(raw)
        query = dict(parse_qsl(url.query))
        return self.kfp.answer(self.command, url.path, query, body, upload)

    def _say(self, status, content):
        data = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _refusal_body(refusal, path):
    """Return the body of a refusal; the upload API has a form of its own."""
    if "upload" in path:
        return {"error_message": str(refusal), "error_details": str(refusal)}
    return {"code": 3, "message": str(refusal), "details": []}


def _uploaded_file(kind, raw):
    form = message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw)
    for part in form.get_payload():
        if part.get_param("name", header="content-disposition") == "uploadfile":
            return part.get_payload(decode=True).decode()
    return None
