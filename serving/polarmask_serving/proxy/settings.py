"""What can be set of the proxy, and the words of its refusals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PORT = 8080
OPERATIONS_PORT = 8082
ADMIN_SOCKET = "admin.sock"
"""In the proxy's folder, where Envoy runs: the whole path may be longer than a socket's may be."""

Config = dict[str, Any]

TYPE = "type.googleapis.com/envoy."
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
    waiting: int = 16
    """Requests that wait in the proxy; a client that gives up leaves this queue."""
    connections: int = 512
    """Of all clients together."""
    heap_bytes: int = 640 * 1024**2
    """Of the proxy; new requests are refused from 3/5 of it on, until it sinks."""

    @classmethod
    def for_workers(cls, workers: int) -> "Limits":
        """Return limits for so many workers, each with a queue of its own."""
        return cls(working=2 * workers, waiting=16 * workers)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where a new model may be tried on live requests."""

    host: str
    port: int
    """Of the candidate's Service."""
    traffic: Path
    """Folder of a mounted ConfigMap with the shares, see `proxy_trial`."""


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
    trial: Trial | None = None
    """None: there is no candidate to send anything to."""
    is_candidate: bool = False
    """It is asked by other proxies, whose mark on requests it believes."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A file that is served as it is."""

    path: str
    content_type: str
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones."""
