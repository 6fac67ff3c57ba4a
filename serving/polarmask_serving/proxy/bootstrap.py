"""Envoy's configuration as a whole: who is listened to, who is asked, and how much there may be.

Envoy is the only program that strangers talk to. It speaks HTTP strictly, takes a whole request
before TorchServe sees any of it, keeps the one queue there is, and gives every refusal, its own as
TorchServe's, the shape `{"error": {"code", "message"}}`.
"""

from pathlib import Path

from polarmask_serving.proxy.http import operations, public
from polarmask_serving.proxy.settings import ADMIN_SOCKET, TYPE, Config, Front, Limits, Page
from polarmask_serving.proxy.trial import clusters, runtime
from polarmask_serving.torchserve.probe import Target

_TLS = TYPE + "extensions.transport_sockets.tls.v3."


def bootstrap(front: Front, target: Target, limits: Limits, pages: tuple[Page, ...] = ()) -> Config:
    """Return the whole configuration."""
    public_chain: Config = {"filters": [_network_filter(public(front, target, limits, pages))]}
    if front.tls is not None:
        public_chain["transport_socket"] = _tls(front, front.tls)
    return {
        "node": {"id": "proxy", "cluster": "polarmask"},
        "admin": {"address": {"pipe": {"path": ADMIN_SOCKET, "mode": 0o600}}},
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
                    {"filters": [_network_filter(operations(target, limits))]},
                ),
            ],
            "clusters": [
                _cluster("inference", target.ports["inference_port"]) | _circuit_breakers(limits),
                _cluster("management", target.ports["management_port"]),
                _cluster("metrics", target.ports["metrics_port"]),
                _admin_cluster(),
                *(clusters(front.trial, _circuit_breakers(limits)) if front.trial else ()),
            ],
        },
        "overload_manager": _overload_manager(limits),
        **(runtime(front.trial) if front.trial else {}),
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


def _admin_cluster() -> Config:
    cluster = _cluster("admin", 1)
    endpoint = {"endpoint": {"address": {"pipe": {"path": ADMIN_SOCKET}}}}
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
    monitors = TYPE + "extensions.resource_monitors."
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
