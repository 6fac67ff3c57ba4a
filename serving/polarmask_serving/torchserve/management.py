"""Versions of a model in a TorchServe of ours, over its two HTTP interfaces: for who runs it.

Who wants predictions of any server takes `client`.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter

from polarmask_serving.errors import ServerError

_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How to speak HTTPS with a server of ours that is reached by an address of the cluster."""

    name: str
    """That its certificate has to carry."""
    ca: str
    """PEM of who signed it; nobody else is believed."""
    certificate: str = ""
    key: str = field(default="", repr=False)
    """PEM of what is shown where clients are asked for a certificate; empty for none."""

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
        """Let a session speak so inside the block."""
        with TemporaryDirectory() as folder:  # nobody else may look into it
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


@dataclass(frozen=True)
class ModelClient:
    """Knows where a TorchServe listens and asks for one model. All methods raise ServerError."""

    inference_url: str
    management_url: str
    name: str

    def predict(
        self, image: bytes, *, version: str | None = None, time_out: float = 60
    ) -> dict[str, Any]:
        """Send the bytes of an image; the default version answers if none is named."""
        path = f"/predictions/{self.name}" + (f"/{version}" if version else "")
        return ask(self.inference_url + path, image, time_out=time_out)

    def is_up(self) -> bool:
        """Tell whether both interfaces answer. It says nothing of any model."""
        try:
            _call("GET", f"{self.inference_url}/ping", time_out=2)
            _call("GET", f"{self.management_url}/models", time_out=2)
        except ServerError:
            return False
        return True

    def versions(self) -> tuple[str, ...]:
        """Return the registered versions, the default one first."""
        default = self.default_version()
        if default is None:
            return ()
        found = [str(entry["modelVersion"]) for entry in self._describe("all")]
        return (default, *sorted(version for version in found if version != default))

    def default_version(self) -> str | None:
        """Return the version that answers when none is named; None if there is no model."""
        entries = self._describe()
        return str(entries[0]["modelVersion"]) if entries else None

    def is_ready(self, version: str) -> bool:
        """Tell whether a worker of the version has loaded its model.

        TorchServe's own health says yes while workers load, crash in a loop or are absent.
        """
        return any(
            worker["status"] == "READY"
            for entry in self._describe(version)
            for worker in entry["workers"]
        )

    def wait_ready(self, version: str, *, time_out: float = 60) -> None:
        """Return once a worker of the version has loaded its model."""
        deadline = time.monotonic() + time_out
        while not self.is_ready(version):
            if time.monotonic() > deadline:
                raise ServerError(f"version {version} has no ready worker after {time_out:.0f} s")
            time.sleep(_POLL_SECONDS)

    def register(self, file_name: str, *, batch_size: int, time_out: float) -> None:
        """Load an archive of the model store and wait for its worker.

        TorchServe keeps a version whose worker died, without workers: unregister it then.
        """
        parameters = {
            "url": file_name,
            "initial_workers": "1",
            "synchronous": "true",
            "batch_size": str(batch_size),
            "max_batch_delay": "20" if batch_size > 1 else "1",  # ms, paid by lone requests too
        }
        url = f"{self.management_url}/models"
        _call("POST", url, time_out=time_out, params=parameters)

    def set_default(self, version: str) -> None:
        """Let this version answer where none is named."""
        _call("PUT", f"{self.management_url}/models/{self.name}/{version}/set-default", time_out=10)

    def unregister(self, version: str) -> None:
        """Drop a version and end its worker. The default one can't go while there are others."""
        _call("DELETE", f"{self.management_url}/models/{self.name}/{version}", time_out=30)

    def _describe(self, version: str = "") -> list[dict[str, Any]]:
        url = f"{self.management_url}/models/{self.name}" + (f"/{version}" if version else "")
        answer = _call("GET", url, time_out=10, missing=[])
        return answer if isinstance(answer, list) else []


def ask(
    url: str,
    image: bytes,
    *,
    time_out: float = 60,
    token: str | None = None,
    tls: Tls | None = None,
) -> dict[str, Any]:
    """Send the bytes of an image to where a model answers.

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
    answer = _call("POST", url, time_out=time_out, data=image, headers=headers, tls=tls)
    if not isinstance(answer, dict):
        raise ServerError(f"{url} answers {answer!r:.200}, not an object")
    return answer


def _call(
    method: str,
    url: str,
    *,
    time_out: float,
    missing: object = None,
    params: Mapping[str, str] | None = None,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    tls: Tls | None = None,
) -> object:
    """Return the JSON of an answer; `missing`, if given, stands for 404."""
    try:
        with requests.Session() as session, tls.of(session) if tls else nullcontext():
            session.trust_env = False  # a proxy can't reach our loopback
            answer = session.request(
                method, url, params=params, data=data, headers=headers, timeout=time_out
            )
            if answer.status_code == 404 and missing is not None:
                return missing
            if answer.status_code >= 400:
                raise ServerError(f"{method} {url}: {answer.status_code} {_reason(answer)}")
            content: object = answer.json()
            return content
    except (requests.RequestException, ValueError) as error:
        raise ServerError(f"{method} {url}: {type(error).__name__}: {error}") from error


def _reason(answer: requests.Response) -> str:
    """Return the message of our errors or of TorchServe's."""
    try:
        content = answer.json()
        return str(content.get("message") or content["error"]["message"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return answer.text[:200]
