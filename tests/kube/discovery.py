"""Discovery documents: versions, groups, resources, schemas."""

from kube.errors import ApiError
from kube.kinds import KINDS

_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_REVIEWS = "authorization.k8s.io"


def is_defined(kind, store):
    """Return whether a custom kind has its CustomResourceDefinition."""
    name = f"metadata.name={kind.resource}"
    return bool(store.list("CustomResourceDefinition", fields=name))


def document(path, store):
    """Return the discovery document at a path, or None."""
    parts = path.strip("/").split("/")
    served = [kind for kind in KINDS if not kind.custom or is_defined(kind, store)]
    versions = {kind.api_version: kind for kind in served if kind.group}
    if path.rstrip("/") == "/version":
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.0", "platform": "linux/amd64"}
    if path in ("/healthz", "/livez", "/readyz"):
        return "ok"
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups = [(kind.group, kind.version) for kind in versions.values()]
        groups = [_group(*each) for each in (*groups, (_REVIEWS, "v1"))]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if parts[:2] == ["openapi", "v3"]:
        return _schemas("/".join(parts[2:]), served, versions)
    if (parts[0] == "api" and len(parts) == 2) or (parts[0] == "apis" and len(parts) == 3):
        return _resources("/".join(parts[1:]), served)
    if parts[0] not in ("api", "apis") or len(parts) < 3:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return None


def _group(group, version):
    entry = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [entry], "preferredVersion": entry}


def _resources(api_version, served):
    resources = [
        {
            "name": f"{kind.plural}/{subresource}" if subresource else kind.plural,
            "singularName": kind.name.lower(),
            "namespaced": kind.namespaced,
            "kind": kind.name,
            "shortNames": list(kind.short_names),
            "verbs": ["get", "patch", "update"] if subresource else _VERBS,
        }
        for kind in served
        if kind.api_version == api_version
        for subresource in ("", *(["status"] if kind.has_status else []))
    ]
    if api_version == "v1":
        log = {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod"}
        resources.append(log | {"verbs": ["get"]})
    if api_version == f"{_REVIEWS}/v1":
        review = {"name": "selfsubjectaccessreviews", "kind": "SelfSubjectAccessReview"}
        resources.append(review | {"singularName": "", "namespaced": False, "verbs": ["create"]})
    if not resources:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version}
    return body | {"resources": resources}


def _schemas(path, served, versions):
    """Return a schema from which kubectl learns that the server validates."""
    if not path:
        places = ["api/v1", *(f"apis/{each}" for each in versions)]
        return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}
    api_version = path.split("/", 1)[1]
    parameters = [{"name": name, "in": "query"} for name in ("fieldValidation", "dryRun")]
    paths = {
        f"/{path}/namespaces/{{namespace}}/{kind.plural}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "x-kubernetes-group-version-kind": {
                    "group": kind.group,
                    "version": kind.version,
                    "kind": kind.name,
                },
            }
        }
        for kind in served
        if kind.api_version == api_version
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "1"}, "paths": paths}
