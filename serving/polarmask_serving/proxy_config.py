"""Envoy's configuration: what the outside may ask, how much, and how a refusal reads.

Envoy is the only program that strangers talk to. It speaks HTTP strictly, takes a whole request
before TorchServe sees any of it, keeps the one queue there is, and gives every refusal, its own as
TorchServe's, the shape `{"error": {"code", "message"}}`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polarmask_serving.options import OPTIONS
from polarmask_serving.probe import Target

HERE = Path(__file__).parent
PORT = 8080
OPERATIONS_PORT = 8082
ADMIN_SOCKET = "admin.sock"

Config = dict[str, Any]

_TYPE = "type.googleapis.com/envoy."
_HTTP = _TYPE + "extensions.filters.http."
_TLS = _TYPE + "extensions.transport_sockets.tls.v3."
# Refusals by status: code, message. TorchServe's own texts name its settings or nothing at all.
REFUSALS = {
    400: ("bad_request", "the request is malformed"),
    401: ("unauthorized", "send the header Authorization: Bearer TOKEN with a valid token"),
    403: ("forbidden", "this is not allowed"),
    404: ("not_found", "nothing is served here; POST an image to /predictions/MODEL"),
    405: ("method_not_allowed", "this address takes another method, see the header Allow"),
    408: ("request_timeout", "the request did not arrive in time; send it faster or smaller"),
    413: ("body_too_large", "the request is too large; send a smaller image"),
    426: ("upgrade_required", "speak HTTP/1.1 or HTTP/2"),
    431: ("headers_too_large", "the request's headers are too large"),
    500: ("prediction_failed", "the model failed on this request or took too long"),
    501: ("not_implemented", "the request uses something this server does not offer"),
    502: ("bad_gateway", "the model's server broke off its answer; ask again"),
    503: ("overloaded", "too many requests wait, or no worker is ready; ask again in a moment"),
    504: ("time_out", "the model took too long; ask again, or send a smaller image"),
    507: ("out_of_memory", "the model ran out of memory on this request; send a smaller image"),
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the proxy takes upon it. The defaults fit a container of 1 GiB."""

    body_bytes: int = 20 * 1024**2
    """Of one request; TorchServe's own limit is the same."""
    upload_seconds: float = 30
    """Until the whole request must be there."""
    answer_seconds: float = 65
    """From then on; TorchServe gives up after 60 s in a worker, and kills that worker."""
    working: int = 2
    """Requests that TorchServe holds: those being worked on and as many ready to follow."""
    waiting: int = 8
    """Requests that wait in the proxy; a client that gives up leaves this queue."""
    connections: int = 512
    """Of all clients together."""
    heap_bytes: int = 640 * 1024**2
    """Of the proxy; new requests are refused from 3/5 of it on, until it sinks."""

    @classmethod
    def for_workers(cls, workers: int) -> "Limits":
        """Return limits that keep so many workers busy and nobody waiting for long."""
        return cls(working=2 * workers, waiting=max(8, 4 * workers))


@dataclass(frozen=True, kw_only=True)
class Front:
    """What the outside sees."""

    host: str
    port: int
    operations_port: int
    """Health and metrics, in plain HTTP without tokens; for the cluster's own programs."""
    scratch: Path
    """Folder of the proxy's own, for the socket of Envoy's administration."""
    tokens: Path | None = None
    """File of bearer tokens, one a line, read anew when it changes; None: everybody may ask."""
    tls: Path | None = None
    """Folder with tls.crt and tls.key, and ca.crt if clients have to show a certificate."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A file that is served as it is."""

    path: str
    content_type: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones."""


def bootstrap(front: Front, target: Target, limits: Limits, pages: tuple[Page, ...] = ()) -> Config:
    """Return the whole configuration."""
    public = _connection_manager("public", _public_routes(target, limits, pages), limits)
    public["http_filters"][:0] = [_lua(front, limits), _buffer(limits)]
    public_chain: Config = {"filters": [_network_filter(public)]}
    if front.tls is not None:
        public_chain["transport_socket"] = _tls(front, front.tls)
    operations = _connection_manager("operations", _operations_routes(target), limits)
    operations["http_filters"].insert(0, _health_lua())
    return {
        "node": {"id": "proxy", "cluster": "polarmask"},
        "admin": {"address": {"pipe": {"path": str(front.scratch / ADMIN_SOCKET), "mode": 0o600}}},
        "application_log_config": {
            "log_format": {
                "json_format": {"time": "%Y-%m-%dT%T.%eZ", "level": "%l", "message": "%j"}
            }
        },
        "static_resources": {
            "listeners": [
                # What draining closes: the other one goes on telling how it stands.
                _listener("public", front.host, front.port, public_chain) | _inbound(limits),
                _listener(
                    *("operations", front.host, front.operations_port),
                    {"filters": [_network_filter(operations)]},
                ),
            ],
            "clusters": [
                _cluster("inference", target.ports["inference_port"]) | _circuit_breakers(limits),
                _cluster("management", target.ports["management_port"]),
                _cluster("metrics", target.ports["metrics_port"]),
                _admin_cluster(front.scratch / ADMIN_SOCKET),
            ],
        },
        "overload_manager": _overload_manager(limits),
    }


def _inbound(limits: Limits) -> Config:
    return {
        "traffic_direction": "INBOUND",
        # Little, so that a slow sender fills its own socket and not our memory.
        "per_connection_buffer_limit_bytes": min(limits.body_bytes, 256 * 1024),
    }


def _listener(name: str, host: str, port: int, chain: Config) -> Config:
    return {"name": name, "address": _address(host, port), "filter_chains": [chain]}


def _address(host: str, port: int) -> Config:
    return {"socket_address": {"address": host, "port_value": port}}


def _network_filter(manager: Config) -> Config:
    return {"name": "http", "typed_config": manager}


def _connection_manager(name: str, routes: list[Config], limits: Limits) -> Config:
    network = _TYPE + "extensions.filters.network.http_connection_manager.v3."
    ids = _TYPE + "extensions.request_id.uuid.v3.UuidRequestIdConfig"
    return {
        "@type": network + "HttpConnectionManager",
        "stat_prefix": name,
        "server_name": "polarmask",
        "route_config": {
            "max_direct_response_body_size_bytes": 1024**2,
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": _HTTP + "router.v3.Router"}},
        ],
        "local_reply_config": {"mappers": _mappers()},
        "access_log": [_access_log()] if name == "public" else [],
        "http_protocol_options": {"accept_http_10": True},
        "http2_protocol_options": {
            # A client gets no more streams over one connection than there are places to wait.
            "max_concurrent_streams": max(1, limits.waiting),
            "initial_stream_window_size": 256 * 1024,
            "initial_connection_window_size": 1024**2,
        },
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        # A caller's id stays as it is.
        "request_id_extension": {"typed_config": {"@type": ids, "pack_trace_reason": False}},
        "request_headers_timeout": "10s",
        "request_timeout": f"{limits.upload_seconds}s",
        "stream_idle_timeout": f"{limits.answer_seconds + limits.upload_seconds}s",
        "common_http_protocol_options": {
            "idle_timeout": "60s",
            "headers_with_underscores_action": "REJECT_REQUEST",
            "max_headers_count": 64,
        },
        # Who is told 413 may still be sending: it has to get the chance to read that.
        "delayed_close_timeout": "1s",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
    }


def _access_log() -> Config:
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ)%",
        "status": "%RESPONSE_CODE%",
        "why": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "milliseconds": "%DURATION%",
        "milliseconds_of_model": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    }
    kind = _TYPE + "extensions.access_loggers.stream.v3.StdoutAccessLog"
    return {
        "name": "stdout",
        "typed_config": {"@type": kind, "log_format": {"json_format": fields}},
    }


def _mappers() -> list[Config]:
    """Return the body of each refusal of Envoy's own."""
    mappers = []
    for status in REFUSALS:
        compared = {"op": "EQ", "value": {"default_value": status, "runtime_key": "unused"}}
        mapper: Config = {
            "filter": {"status_code_filter": {"comparison": compared}},
            "body_format_override": _error_format(status),
        }
        if status == 503:
            mapper["headers_to_add"] = [_header("retry-after", "1")]
        mappers.append(mapper)
    any_other = {"op": "GE", "value": {"default_value": 400, "runtime_key": "unused"}}
    said = {"filter": "polarmask", "path": [{"key": "refused"}], "value": {"bool_match": True}}
    by_script = {"matcher": said, "match_if_key_not_found": False}
    return [
        {
            "filter": {"metadata_filter": by_script},
            "body_format_override": {
                "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
                "content_type": "application/json",
            },
        },
        *mappers,
        {
            "filter": {"status_code_filter": {"comparison": any_other}},
            "body_format_override": _error_format(500),
        },
    ]


def _error_format(status: int) -> Config:
    code, message = REFUSALS[status]
    return {"json_format": {"error": {"code": code, "message": message}}}


def _header(name: str, value: str) -> Config:
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _public_routes(target: Target, limits: Limits, pages: tuple[Page, ...]) -> list[Config]:
    name = re.escape(target.name)
    predictions = rf"/predictions/{name}(/[A-Za-z0-9._-]+)?|/v1/models/{name}:predict"
    routes = [
        *_only("POST", {"safe_regex": {"regex": predictions}}, _to_model(limits)),
        *_only("GET", {"path": "/healthz"}, _to_health(target)),
    ]
    for page in pages:
        answer = {
            "direct_response": {"status": 200, "body": {"inline_string": page.body}},
            "response_headers_to_add": [
                _header("content-type", page.content_type),
                _header("x-content-type-options", "nosniff"),
                *(_header(name, value.replace("%", "%%")) for name, value in page.headers.items()),
            ],
        }
        routes += _only("GET", {"path": page.path}, answer)
    return [*routes, _nothing()]


def _only(method: str, match: Config, action: Config) -> list[Config]:
    """Return the routes of one address: the action for its method, a refusal for others."""
    is_method = {"name": ":method", "string_match": {"exact": method}}
    return [
        {"match": match | {"headers": [is_method]}} | action,
        {
            "match": match,
            "direct_response": {"status": 405},
            "response_headers_to_add": [_header("allow", method)],
        },
    ]


def _nothing() -> Config:
    return {"match": {"prefix": "/"}, "direct_response": {"status": 404}}


def _to_model(limits: Limits) -> Config:
    return {
        "route": {
            "cluster": "inference",
            "timeout": f"{limits.answer_seconds}s",
            # The connection was closed at rest: nothing of the request was read.
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 1},
        }
    }


def _to_health(target: Target) -> Config:
    """Ask what `polarmask_serving.probe` asks: TorchServe's own health says yes too often."""
    rewrite = {"pattern": {"regex": "^/healthz"}, "substitution": target.description}
    return {"route": {"cluster": "management", "timeout": "4s", "regex_rewrite": rewrite}}


def _operations_routes(target: Target) -> list[Config]:
    prometheus = {"pattern": {"regex": "^/metrics/proxy"}, "substitution": "/stats/prometheus"}
    return [
        *_only("GET", {"path": "/healthz"}, _to_health(target)),
        *_only("GET", {"path": "/metrics"}, {"route": {"cluster": "metrics", "timeout": "5s"}}),
        *_only(
            *("GET", {"path": "/metrics/proxy"}),
            {"route": {"cluster": "admin", "timeout": "5s", "regex_rewrite": prometheus}},
        ),
        _nothing(),
    ]


def _lua(front: Front, limits: Limits) -> Config:
    settings = {
        "tokens": None if front.tokens is None else str(front.tokens),
        "body_bytes": limits.body_bytes,
    }
    return _script(
        *(_local("SETTINGS", settings), _local("OPTIONS", dict.fromkeys(OPTIONS, True))),
        _refusals(),
        *(_file("proxy_health.lua"), _file("proxy.lua")),
    )


def _health_lua() -> Config:
    return _script(_file("proxy_health.lua"), _file("proxy_operations.lua"))


def _script(*parts: str) -> Config:
    source = {"inline_string": "\n".join(parts)}
    config = {"@type": _HTTP + "lua.v3.Lua", "default_source_code": source}
    return {"name": "lua", "typed_config": config}


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _refusals() -> str:
    bodies = {
        status: json.dumps({"error": {"code": code, "message": message}})
        for status, (code, message) in REFUSALS.items()
    }
    entries = ", ".join(f"[{status}] = {json.dumps(body)}" for status, body in bodies.items())
    return f"local REFUSALS = {{{entries}}}"


def _local(name: str, values: dict[str, Any]) -> str:
    """Write a table of texts and numbers in Lua, which reads JSON's texts where they are ASCII."""
    entries = ", ".join(
        f"{key} = {json.dumps(value)}" for key, value in values.items() if value is not None
    )
    return f"local {name} = {{{entries}}}"


def _buffer(limits: Limits) -> Config:
    config = {"@type": _HTTP + "buffer.v3.Buffer", "max_request_bytes": limits.body_bytes}
    return {"name": "buffer", "typed_config": config}


def _tls(front: Front, folder: Path) -> Config:
    asks_clients = (folder / "ca.crt").is_file()
    common: Config = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_secret(front, "certificate")],
    }
    if asks_clients:
        common["validation_context_sds_secret_config"] = _secret(front, "clients")
    context = {
        "@type": _TLS + "DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": asks_clients,
    }
    return {"name": "tls", "typed_config": context}


def _secret(front: Front, name: str) -> Config:
    path = str(front.scratch / f"{name}.json")
    return {"name": name, "sds_config": {"path_config_source": {"path": path}}}


def secrets(folder: Path) -> dict[str, Config]:
    """Return what `bootstrap` refers to: file name -> content. Replaced files count at once."""
    watched = {"path": str(folder)}
    certificate = {
        "certificate_chain": {"filename": str(folder / "tls.crt")},
        "private_key": {"filename": str(folder / "tls.key")},
        "watched_directory": watched,
    }
    clients = {"trusted_ca": {"filename": str(folder / "ca.crt")}, "watched_directory": watched}
    return {
        f"{name}.json": {"resources": [{"@type": _TLS + "Secret", "name": name, kind: content}]}
        for name, kind, content in (
            ("certificate", "tls_certificate", certificate),
            ("clients", "validation_context", clients),
        )
    }


def _cluster(name: str, port: int) -> Config:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address("127.0.0.1", port)}}]}
            ],
        },
    }


def _admin_cluster(socket: Path) -> Config:
    cluster = _cluster("admin", 1)
    endpoint = {"endpoint": {"address": {"pipe": {"path": str(socket)}}}}
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [endpoint]}]
    return cluster


def _circuit_breakers(limits: Limits) -> Config:
    threshold = {
        "max_connections": limits.working,
        "max_pending_requests": limits.waiting,
        "max_requests": limits.working + limits.waiting,
        "max_retries": limits.waiting,
    }
    return {
        "circuit_breakers": {"thresholds": [threshold]},
        "per_connection_buffer_limit_bytes": 1024**2,
    }


def _overload_manager(limits: Limits) -> Config:
    """Bound connections and memory."""
    monitors = _TYPE + "extensions.resource_monitors."
    heap = {
        "@type": monitors + "fixed_heap.v3.FixedHeapConfig",
        "max_heap_size_bytes": limits.heap_bytes,
    }
    connections = {
        "@type": monitors + "downstream_connections.v3.DownstreamConnectionsConfig",
        "max_active_downstream_connections": limits.connections,
    }

    def at(action: str, share: float) -> Config:
        trigger = {"name": "heap", "threshold": {"value": share}}
        return {"name": f"envoy.overload_actions.{action}", "triggers": [trigger]}

    return {
        "refresh_interval": "0.05s",
        "resource_monitors": [
            {"name": "heap", "typed_config": heap},
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": connections,
            },
        ],
        "actions": [
            at("shrink_heap", 0.5),
            at("stop_accepting_requests", 0.6),
            at("disable_http_keepalive", 0.7),
        ],
    }
