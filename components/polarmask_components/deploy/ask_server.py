"""Send a server an image, and check that its answer is one of the expected model."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from polarmask_serving.errors import ServerError

_SECONDS_TO_REACH = 5.0
_FIELDS = {"category_id", "category", "score", "bbox", "polygon"}


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to speak HTTPS with a server that is reached by an address of the cluster."""

    name: str
    """That its certificate has to carry."""
    ca: str
    """PEM of the only authority that is trusted."""
    certificate: str = ""
    key: str = field(default="", repr=False)
    """PEM, for servers that ask clients for a certificate; empty for none."""

    @classmethod
    def from_environment(cls, name: str) -> Self | None:
        """Read POLARMASK_CA, POLARMASK_CLIENT_CERT, POLARMASK_CLIENT_KEY; None without the first.

        Raises:
            ServerError: One of certificate and key is there without what it needs.
        """
        names = ("POLARMASK_CA", "POLARMASK_CLIENT_CERT", "POLARMASK_CLIENT_KEY")
        ca, certificate, key = (os.environ.get(each, "") for each in names)
        if bool(certificate) != bool(key) or (certificate and not ca):
            raise ServerError(
                "POLARMASK_CLIENT_CERT and POLARMASK_CLIENT_KEY go together, and with POLARMASK_CA"
            )
        return cls(name=name, ca=ca, certificate=certificate, key=key) if ca else None

    @contextmanager
    def of(self, session: requests.Session) -> Iterator[None]:
        """Let a session use it inside the block."""
        with TemporaryDirectory() as folder:  # readable for this user alone
            files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
            paths = {name: Path(folder) / name for name in files}
            for name, path in paths.items():
                path.write_text(files[name], encoding="ascii")
            session.verify = str(paths["ca"])
            if self.certificate:
                session.cert = (str(paths["certificate"]), str(paths["key"]))
            session.mount("https://", _Named(self.name))
            yield


class _Named(HTTPAdapter):
    """Expects a name in the certificate that is not the address."""

    def __init__(self, name: str) -> None:
        self._name = name
        super().__init__()

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # the base class's
        super().init_poolmanager(*arguments, **options, server_hostname=self._name)


def ask(
    url: str,
    image: bytes,
    *,
    time_out: float = 60,
    token: str | None = None,
    tls: Tls | None = None,
) -> dict[str, Any]:
    """Send the bytes of an image to where a model answers; return the JSON of its answer.

    Args:
        url: Of the model.
        image: JPEG or PNG.
        time_out: Seconds.
        token: Of the server, if it asks for one.
        tls: For an https address within a cluster.

    Raises:
        ServerError: No answer in time, or an error instead of one.
    """
    headers = {"Content-Type": "application/octet-stream"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        with requests.Session() as session, tls.of(session) if tls else nullcontext():
            session.trust_env = False  # a proxy can't reach our loopback
            answer = session.post(url, data=image, headers=headers, timeout=time_out)
            if not answer.ok:
                raise ServerError(f"POST {url}: {answer.status_code} {answer.text[:300]}")
            content = answer.json()
    except (requests.RequestException, ValueError) as error:
        raise ServerError(f"POST {url}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ServerError(f"{url} answers {content!r:.200}, not an object")
    return content


def is_reachable(url: str) -> bool:
    """Return whether packets get to a server's address; it may refuse them, as while none runs."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname, parts.port), _SECONDS_TO_REACH).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def check_answer(answer: dict[str, Any], name: str, version: str) -> None:
    """Raise ServerError unless the answer has our schema and comes from this version."""
    expected = {"name": name, "version": version}
    if answer.get("model") != expected:
        raise ServerError(f"the answer comes from {answer.get('model')}, not from {expected}")
    instances = answer.get("instances")
    if not isinstance(instances, list):
        raise ServerError(f"the answer has no instances: {str(answer)[:200]}")
    for instance in instances:
        # An instance in several parts has all its outlines in `polygons`.
        if not isinstance(instance, dict) or set(instance) - {"polygons"} != _FIELDS:
            raise ServerError(f"an instance lacks the fields {sorted(_FIELDS)}: {instance!r:.200}")
        if not _in_range(instance):
            raise ServerError(f"an instance is out of range: {instance!r:.200}")


def _in_range(instance: dict[str, Any]) -> bool:
    try:
        return 0 <= instance["score"] <= 1 and len(instance["bbox"]) == 4
    except TypeError:
        return False
