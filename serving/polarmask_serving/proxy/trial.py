"""The part of Envoy's configuration that lets a candidate have some of the live requests.

How many is read from files while Envoy runs: a ConfigMap as the kubelet mounts it, a file for each
key, replaced all at once. Without files, or with zeros in them, the candidate hears nothing.
"""

import json

from polarmask_serving.answer.options import TRIAL_HEADER
from polarmask_serving.proxy.settings import TYPE, Config, Trial

COPIES = "polarmask.copies"
"""How many requests the candidate gets copies of; clients get the stable version's answer."""
SHARE = "polarmask.share"
"""How many requests the candidate answers."""

_MANY = "TEN_THOUSAND"


def entries(*, copies: float, share: float) -> dict[str, str]:
    """Return the entries of the ConfigMap for these shares of all requests, in [0, 1]."""
    # As JSON, since Envoy takes a bare number for percent.
    return {
        key: json.dumps({"numerator": round(value * 10_000), "denominator": _MANY})
        for key, value in ((COPIES, copies), (SHARE, share))
    }


def runtime(trial: Trial) -> Config:
    """Return where Envoy reads the shares from."""
    layers = [
        {"name": "none", "static_layer": {COPIES: 0, SHARE: 0}},
        {"name": "traffic", "disk_layer": {"symlink_root": str(trial.traffic / "..data")}},
    ]
    return {"layered_runtime": {"layers": layers}}


def clusters(trial: Trial, limits: Config) -> list[Config]:
    """Return the candidate, and the candidate with the stable version behind it.

    Args:
        trial: Where the candidate is.
        limits: Circuit breakers of a cluster.
    """
    address = {"address": trial.host, "port_value": trial.port}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    aggregate = TYPE + "extensions.clusters.aggregate.v3.ClusterConfig"
    return [
        {
            "name": "candidate",
            "cluster_type": {
                "name": "envoy.cluster.dns",
                "typed_config": {
                    "@type": TYPE + "extensions.clusters.dns.v3.DnsCluster",
                    "dns_refresh_rate": "60s",  # a Service's address stays
                    "dns_lookup_family": "V4_PREFERRED",
                },
            },
            "wait_for_warm_on_init": False,
            "connect_timeout": "2s",
            "load_assignment": {
                "cluster_name": "candidate",
                "endpoints": [{"lb_endpoints": [endpoint]}],
            },
        }
        | limits,
        {
            "name": "candidate_else_stable",
            "connect_timeout": "2s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {
                "name": "envoy.clusters.aggregate",
                "typed_config": {"@type": aggregate, "clusters": ["candidate", "inference"]},
            },
        },
    ]


def routes(match: Config, to_model: Config) -> list[Config]:
    """Return the routes that stand before the usual one of predictions.

    Args:
        match: Of the usual one.
        to_model: Its action.
    """
    usual = to_model["route"]
    copied = usual | {"request_mirror_policies": [{"cluster": "candidate"}]}
    mark = {"header": {"key": TRIAL_HEADER, "value": "copied"}}
    priorities = TYPE + "extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    shared = usual | {
        "cluster": "candidate_else_stable",
        # Whatever the candidate fails at, the stable version is asked; who waits notices the time.
        "retry_policy": {
            "retry_on": "5xx,reset,connect-failure,refused-stream",
            "num_retries": 1,
            "per_try_timeout": "20s",
            "retry_priority": {
                "name": "envoy.retry_priorities.previous_priorities",
                "typed_config": {"@type": priorities, "update_frequency": 1},
            },
        },
    }
    return [
        {
            "match": match | _some(COPIES),
            "route": copied,
            "request_headers_to_add": [mark | {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        },
        {"match": match | _some(SHARE), "route": shared},
    ]


def _some(key: str) -> Config:
    default = {"numerator": 0, "denominator": _MANY}
    return {"runtime_fraction": {"default_value": default, "runtime_key": key}}
