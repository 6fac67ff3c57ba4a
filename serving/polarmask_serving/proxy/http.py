"""The part of Envoy's configuration that knows HTTP: addresses, refusals, scripts, log."""

import json
import re
from pathlib import Path
from typing import Any

from polarmask_serving.answer.options import OPTIONS, TRIAL_HEADER
from polarmask_serving.proxy.settings import REFUSALS, TYPE, Config, Front, Limits, Page
from polarmask_serving.proxy.trial import routes
from polarmask_serving.torchserve.probe import Target

HERE = Path(__file__).parent
_HTTP = TYPE + "extensions.filters.http."


def public(front: Front, target: Target, limits: Limits, pages: tuple[Page, ...]) -> Config:
    """Return how strangers are heard: predictions, health and pages."""
    manager = _connection_manager("public", _public_routes(front, target, limits, pages), limits)
    manager["http_filters"][:0] = [_lua(front, limits), _buffer(limits)]
    return manager


def operations(target: Target, limits: Limits) -> Config:
    """Return how the cluster's own programs are heard: health and metrics."""
    manager = _connection_manager("operations", _operations_routes(target), limits)
    manager["http_filters"].insert(0, _health_lua())
    return manager


def _connection_manager(name: str, routes: list[Config], limits: Limits) -> Config:
    network = TYPE + "extensions.filters.network.http_connection_manager.v3."
    ids = TYPE + "extensions.request_id.uuid.v3.UuidRequestIdConfig"
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
    kind = TYPE + "extensions.access_loggers.stream.v3.StdoutAccessLog"
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


def _public_routes(
    front: Front, target: Target, limits: Limits, pages: tuple[Page, ...]
) -> list[Config]:
    name = re.escape(target.name)
    predictions = rf"/predictions/{name}(/[A-Za-z0-9._-]+)?|/v1/models/{name}:predict"
    to_predict = _only("POST", {"safe_regex": {"regex": predictions}}, _to_model(limits))
    tried = routes(to_predict[0]["match"], _to_model(limits)) if front.trial else []
    found = [*tried, *to_predict, *_only("GET", {"path": "/healthz"}, _to_health(target))]
    for page in pages:
        answer = {
            "direct_response": {"status": 200, "body": {"inline_string": page.body}},
            "response_headers_to_add": [
                _header("content-type", page.content_type),
                _header("x-content-type-options", "nosniff"),
                *(_header(name, value.replace("%", "%%")) for name, value in page.headers.items()),
            ],
        }
        found += _only("GET", {"path": page.path}, answer)
    return [*found, _nothing()]


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
    """Ask what `torchserve.probe` asks: TorchServe's own health says yes too often."""
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
        "mark_of_proxies": None if front.is_candidate else TRIAL_HEADER,
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
