"""The API without HTTP: addresses, verbs, access, patches, watches."""

import json
import time
from dataclasses import dataclass

from kube import discovery
from kube.access import is_allowed, user_name
from kube.errors import ApiError
from kube.kinds import Kind, kind_at
from kube.patches import forget, json_patch, merge_patch, strategic_merge
from kube.pod_log import pod_log
from kube.selectors import matches_fields, matches_labels


@dataclass(frozen=True)
class Request:
    """An HTTP request."""

    method: str
    path: str
    query: dict
    body: object
    content_type: str
    user: str


@dataclass(frozen=True)
class Answer:
    """An HTTP response: a JSON `body`, or a stream of `lines` (str)."""

    body: object = None
    lines: object = None
    status: int = 200
    content_type: str = "application/json"


@dataclass(frozen=True)
class Address:
    """A parsed path."""

    kind: Kind
    namespace: str  # empty: all, or none
    name: str
    subresource: str


_SUBRESOURCES = {"status": "has_status", "scale": "has_scale"}


class Api:
    """The API of one server, without the sockets.

    Args:
        store: The objects.
        logs: What containers printed.
        namespace: Namespace of the service accounts.
        is_over: Called by streams: whether the server stops.
    """

    def __init__(self, store, logs, namespace, is_over):
        self._store = store
        self._logs = logs
        self._namespace = namespace
        self._is_over = is_over
        self._applied = {}  # (uid, field manager) -> what it applied last

    def answer(self, request):
        """Return the answer to a request, or raise ApiError."""
        document = discovery.document(request.path, self._store)
        if document is not None:
            return Answer(document)
        if request.path.endswith("/selfsubjectreviews"):
            who = {"userInfo": {"username": request.user}}
            return Answer({**request.body, "status": who}, status=201)
        if request.path.endswith("/selfsubjectaccessreviews"):
            return Answer(self._review(request), status=201)
        address = self._address(request.path)
        verb = _verb(request, address)
        self._check_access(request.user, verb, address)
        if address.subresource == "log":
            pod = self._store.get("Pod", address.name, address.namespace)
            lines = pod_log(pod, self._logs, request.query, self._is_over)
            return Answer(lines=lines, content_type="text/plain")
        return getattr(self, f"_{verb}")(request, address)

    def _address(self, path):
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            group, version, rest = "", parts[1], parts[2:]
        else:
            group, version, rest = parts[1], parts[2], parts[3:]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        kind = kind_at(group, version, rest[0])
        if kind.custom and not discovery.is_defined(kind, self._store):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        name, subresource = [*rest[1:], "", ""][:2]
        known = subresource in ("", *_SUBRESOURCES) or (kind.name, subresource) == ("Pod", "log")
        if not known or not getattr(kind, _SUBRESOURCES.get(subresource, "name")):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        return Address(kind, namespace, name, subresource)

    def _check_access(self, user, verb, address):
        kind = address.kind
        resource = "/".join(filter(None, (kind.plural, address.subresource)))
        where = address.name if kind.name == "Namespace" else address.namespace
        if is_allowed(
            *(self._store, user, verb),
            group=kind.group,
            resource=resource,
            namespace=where,
            name=address.name,
        ):
            return
        scope = f'in the namespace "{where}"' if where else "at the cluster scope"
        message = (
            f'{kind.resource} "{address.name}" is forbidden: User "{user}" cannot {verb} resource '
            f'"{resource}" in API group "{kind.group}" {scope}'
        )
        raise ApiError(403, "Forbidden", message)

    def _review(self, request):
        asked = request.body["spec"].get("resourceAttributes") or {}
        resource = "/".join(filter(None, (asked.get("resource"), asked.get("subresource"))))
        allowed = is_allowed(
            *(self._store, request.user, asked.get("verb")),
            group=asked.get("group", ""),
            resource=resource,
            namespace=asked.get("namespace", ""),
            name=asked.get("name", ""),
        )
        return {**request.body, "status": {"allowed": allowed}}

    def _get(self, _request, address):
        obj = self._store.get(address.kind.name, address.name, address.namespace)
        return Answer(_scale_of(obj) if address.subresource == "scale" else obj)

    def _list(self, request, address):
        with self._store.changed:
            body = {
                "kind": f"{address.kind.name}List",
                "apiVersion": address.kind.api_version,
                "metadata": {"resourceVersion": str(self._store.revision)},
                "items": self._select(request, address),
            }
        return Answer(body)

    def _select(self, request, address):
        return self._store.list(
            *(address.kind.name, address.namespace or None),
            labels=request.query.get("labelSelector", ""),
            fields=request.query.get("fieldSelector", ""),
        )

    def _watch(self, request, address):
        return Answer(lines=self._events(request, address))

    def _events(self, request, address):
        """Yield the events of a watch: one JSON object a line."""
        deadline = time.monotonic() + float(request.query.get("timeoutSeconds", 3600))
        since = int(request.query.get("resourceVersion") or 0)
        with self._store.changed:
            if not since:
                since = self._store.revision
                for obj in self._select(request, address):
                    yield _event("ADDED", obj)
        while time.monotonic() < deadline and not self._is_over():
            try:
                with self._store.changed:
                    changes = self._store.changes_since(since)
                    if not changes:
                        self._store.changed.wait(min(0.5, max(0.0, deadline - time.monotonic())))
            except ApiError as error:
                yield _event("ERROR", error.body())
                return
            for change in changes:
                since = change.revision
                if event := _seen_through(change, request.query, address):
                    yield event

    def _create(self, request, address):
        kind = address.kind
        named = request.body.get("kind", kind.name), request.body.get("apiVersion")
        if named not in {(kind.name, kind.api_version), (kind.name, None)}:
            message = f"{named} does not match the expected {kind.name} {kind.api_version}"
            raise ApiError(400, "BadRequest", message)
        dry_run = "dryRun" in request.query
        return Answer(
            self._store.create(kind.name, request.body, address.namespace, dry_run=dry_run),
            status=201,
        )

    def _update(self, request, address):
        return Answer(self._replace(request, address, request.body))

    def _replace(self, request, address, obj):
        return self._store.replace(
            *(address.kind.name, obj, address.name, address.namespace),
            status=address.subresource == "status",
            dry_run="dryRun" in request.query,
        )

    def _patch(self, request, address):
        with self._store.changed:
            if "apply-patch" in request.content_type:
                return self._apply(request, address)
            old = self._store.get(address.kind.name, address.name, address.namespace)
            if address.subresource == "scale":
                replicas = merge_patch(_scale_of(old), request.body)["spec"]["replicas"]
                obj = merge_patch(old, {"spec": {"replicas": replicas}})
            else:
                obj = _patched(old, request, address.kind)
            obj = self._replace(request, address, obj)
        return Answer(_scale_of(obj) if address.subresource == "scale" else obj)

    def _apply(self, request, address):
        """Do a server-side apply: fields that this manager no longer sets are removed."""
        manager = request.query.get("fieldManager")
        if not manager:
            raise ApiError(400, "BadRequest", "fieldManager is required for apply patch")
        try:
            old = self._store.get(address.kind.name, address.name, address.namespace)
        except ApiError:
            answer = self._create(request, address)
        else:
            before = self._applied.get((old["metadata"]["uid"], manager), {})
            merge = merge_patch if address.kind.custom else strategic_merge
            obj = merge(forget(old, before, request.body), request.body)
            answer = Answer(self._replace(request, address, obj))
        if "dryRun" not in request.query:
            self._applied[answer.body["metadata"]["uid"], manager] = request.body
        return answer

    def _delete(self, request, address):
        options = request.body if isinstance(request.body, dict) else {}
        grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
        obj = self._store.delete(
            *(address.kind.name, address.name, address.namespace),
            propagation=options.get("propagationPolicy")
            or request.query.get("propagationPolicy", "Background"),
            grace=None if grace is None else int(grace),
            uid=(options.get("preconditions") or {}).get("uid"),
        )
        if address.kind.name == "Pod" or "deletionTimestamp" in obj["metadata"]:
            return Answer(obj)
        details = {"name": address.name, "kind": address.kind.plural, "uid": obj["metadata"]["uid"]}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
        return Answer(status | {"details": details})

    def _deletecollection(self, request, address):
        items = self._select(request, address)
        for each in items:
            one = Address(address.kind, address.namespace, each["metadata"]["name"], "")
            self._delete(request, one)
        return Answer({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def user_of(self, authorization, impersonated):
        """Return the user: `Bearer ACCOUNT` is a service account, no token the administrator."""
        if impersonated:
            return impersonated
        account = (authorization or "").removeprefix("Bearer ").strip()
        if account:
            try:
                self._store.get("ServiceAccount", account, self._namespace)
            except ApiError:
                raise ApiError(401, "Unauthorized", "Unauthorized") from None
        return user_name(account, self._namespace)


def _verb(request, address):
    if request.method == "GET":
        if address.name:
            return "get"
        return "watch" if request.query.get("watch", "").lower() in ("true", "1") else "list"
    if request.method == "DELETE":
        return "delete" if address.name else "deletecollection"
    return {"POST": "create", "PUT": "update", "PATCH": "patch"}[request.method]


def _event(type_, obj):
    return json.dumps({"type": type_, "object": obj}) + "\n"


def _seen_through(change, query, address):
    """Return a change as a watch with these selectors reports it, or None."""
    if change.kind != address.kind.name or address.namespace not in ("", change.namespace):
        return None

    def selected(obj):
        labels = obj["metadata"].get("labels")
        return matches_labels(query.get("labelSelector"), labels) and matches_fields(
            query.get("fieldSelector"), obj
        )

    is_in = change.type != "DELETED" and selected(change.obj)
    was_in = change.before is not None and selected(change.before)
    if is_in:
        return _event("MODIFIED" if was_in else "ADDED", change.obj)
    return _event("DELETED", change.obj) if was_in else None


def _scale_of(obj):
    meta = obj["metadata"]
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: meta[name] for name in names},
        "spec": {"replicas": obj["spec"].get("replicas", 1)},
        "status": {"replicas": obj.get("status", {}).get("replicas", 0)},
    }


def _patched(old, request, kind):
    if "json-patch" in request.content_type:
        return json_patch(old, request.body)
    if "strategic-merge-patch" in request.content_type:
        if kind.custom:
            message = "the body of the request was in an unknown format"
            raise ApiError(415, "UnsupportedMediaType", message)
        return strategic_merge(old, request.body)
    return merge_patch(old, request.body)
