"""Envoy's configuration: `envoy.yaml`, with its holes filled in and optional parts dropped."""

import json
import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polarmask.system.files import write_text
from polarmask_serving.answer.options import (
    BODY_TYPE_HEADER,
    OPTIONS,
    TRIAL_HEADER,
    header_of,
)
from polarmask_serving.errors import ServerError
from polarmask_serving.proxy import openapi
from polarmask_serving.proxy.page import demo_page
from polarmask_serving.proxy.refusals import REFUSALS, UNCHECKED, body_of, error_body
from polarmask_serving.proxy.trial import COPIES, SHARE, Trial
from polarmask_serving.torchserve.probe import Target

HERE = Path(__file__).parent
SCRIPT = HERE / "proxy.lua"
ADMIN_SOCKET = "admin.sock"
"""In the proxy's folder, where Envoy runs: the whole path may be longer than a socket's may be."""
_ANSWER_SECONDS = 65
"""As in envoy.yaml."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the proxy accepts. The defaults fit a container of 1 GiB."""

    body_bytes: int = 20 * 1024**2
    """Of one request; TorchServe's own limit is the same."""
    upload_seconds: float = 30
    """Until the whole request has to be there."""
    working: int = 2
    """Requests that TorchServe holds: those being worked on and as many ready to follow."""
    waiting: int = 16
    """Requests that wait in the proxy; a client that disconnects leaves this queue."""

    @classmethod
    def for_workers(cls, workers: int) -> "Limits":
        """Return limits for this number of workers."""
        return cls(working=2 * workers, waiting=16 * workers)


@dataclass(frozen=True, kw_only=True)
class Front:
    """What clients see."""

    host: str
    port: int
    operations_port: int
    """Health and metrics, in plain HTTP without tokens; for the cluster's own programs."""
    folder: Path
    """Writable, of the proxy alone."""
    shares_port: bool = False
    """Another proxy may listen at `port`, too: the system deals out the connections."""
    tokens: Path | None = None
    """File of bearer tokens, one a line; changes count after a second. None: anybody may ask."""
    tls: Path | None = None
    """Folder with tls.crt and tls.key, and ca.crt if clients have to show a certificate."""
    trial: Trial | None = None
    """None: there is no candidate to send anything to."""
    is_candidate: bool = False
    """Other proxies send it requests, and it keeps their mark."""
    origins: tuple[str, ...] = ()
    """Sites whose pages may ask, such as `https://lab.example`; `*` is all (CORS)."""


def write_config(front: Front, target: Target, limits: Limits) -> Path:
    """Write Envoy's configuration into the front's folder, where Envoy has to run.

    Raises:
        ServerError: A file of tokens or certificates is missing.
    """
    if front.tokens is not None and not front.tokens.is_file():
        raise ServerError(f"{front.tokens} is missing; write one bearer token a line into it")
    tls = front.tls
    absent = [n for n in ("tls.crt", "tls.key") if tls is not None and not (tls / n).is_file()]
    if absent:
        raise ServerError(f"{tls}/{absent[0]} is missing; give certificate and key in PEM")
    asks_clients = tls is not None and (tls / "ca.crt").is_file()
    conditions = {
        "tls": tls is not None,
        "client_certificates": asks_clients,
        "trial": front.trial is not None,
        "stable": not front.is_candidate,
        "cors": bool(front.origins),
    }
    wanted = {name for name, holds in conditions.items() if holds}
    values = _values(front, target, limits) | {"asks_clients": asks_clients}
    if tls is not None:
        for name, content in _filled("secrets.yaml", values, wanted).items():
            write_text(front.folder / name, json.dumps(content))
    out = front.folder / "envoy.json"
    write_text(out, json.dumps(_filled("envoy.yaml", values, wanted), indent=1))
    return out


def _values(front: Front, target: Target, limits: Limits) -> dict[str, Any]:
    page = demo_page(target.name)
    return {
        **target.ports,
        "host": front.host,
        "port": front.port,
        "shares_port": front.shares_port,
        "operations_port": front.operations_port,
        "folder": str(front.folder),
        "tls": str(front.tls),
        "tokens": "" if front.tokens is None else str(front.tokens),
        "candidate_host": front.trial and front.trial.host,
        "candidate_port": front.trial and front.trial.port,
        "traffic": front.trial and str(front.trial.traffic),
        "name": target.name,
        "name_regex": re.escape(target.name),
        "version": target.version,
        "body_bytes": limits.body_bytes,
        "first_length_too_large": limits.body_bytes + 1,
        "connection_buffer_bytes": min(limits.body_bytes, 256 * 1024),
        "upload_seconds": limits.upload_seconds,
        "idle_seconds": limits.upload_seconds + _ANSWER_SECONDS,
        "working": limits.working,
        "waiting": limits.waiting,
        "working_and_waiting": limits.working + limits.waiting,
        "admin_socket": ADMIN_SOCKET,
        "script": str(SCRIPT),
        # TorchServe takes 8 KiB with what proxies add; a candidate gets the other proxy's, too.
        "headers_kb": 8 if front.is_candidate else 7,
        "trial_header": TRIAL_HEADER,
        "body_type_header": BODY_TYPE_HEADER,
        "origins_regex": "|".join(".*" if o == "*" else re.escape(o) for o in front.origins),
        "origins": [{"exact": origin} for origin in front.origins],
        "cors_headers": ", ".join(
            ["authorization", "content-type", "x-request-id", *(header_of(n) for n in OPTIONS)]
        ),
        "unchecked": error_body(*UNCHECKED[1:]),
        "copies_key": COPIES,
        "share_key": SHARE,
        "options": dict.fromkeys(OPTIONS, True),
        "openapi": json.dumps(openapi.document()),
        "demo": page.body,
        "demo_policy": page.policy.replace("%", "%%"),
        "bodies": {str(status): json.dumps(body_of(status)) for status in REFUSALS},
        "body_of_500": body_of(500),
        "body_of_503": body_of(503),
        "refusals": [_mapper(status) for status in REFUSALS],
    }


def _mapper(status: int) -> dict[str, Any]:
    """Return what gives an error of Envoy's own our shape."""
    compared = {"op": "EQ", "value": {"default_value": status, "runtime_key": "none"}}
    return {
        "filter": {"status_code_filter": {"comparison": compared}},
        "body_format_override": {"json_format": body_of(status)},
    }


def _filled(file: str, values: Mapping[str, Any], wanted: Collection[str]) -> Any:  # noqa: ANN401 what YAML holds
    template = yaml.safe_load((HERE / file).read_text(encoding="utf-8"))
    return _fill(template, values, wanted)


def _fill(part: Any, values: Mapping[str, Any], wanted: Collection[str]) -> Any:  # noqa: ANN401 what YAML holds
    """Fill in holes and drop parts whose `if` is not wanted.

    A text that is one hole becomes the value, of whatever type; a list in a list is spliced in.
    """

    def stays(each: object) -> bool:
        return not isinstance(each, dict) or each.get("if") in {None, *wanted}

    def fill(each: Any) -> Any:  # noqa: ANN401 what YAML holds
        return _fill(each, values, wanted)

    if isinstance(part, dict):
        kept = {key: each for key, each in part.items() if key != "if" and stays(each)}
        return {fill(key): fill(each) for key, each in kept.items()}
    if isinstance(part, list):
        filled = [fill(each) for each in part if stays(each)]
        return [item for each in filled for item in (each if isinstance(each, list) else [each])]
    if isinstance(part, str) and "${" in part:
        hole = re.fullmatch(r"\$\{(\w+)\}", part)
        return values[hole[1]] if hole else string.Template(part).substitute(values)
    return part
