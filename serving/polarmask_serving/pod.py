"""Main container of a serving pod: become a TorchServe that serves one archive.

    POD_IP=10.0.0.7 WORKERS=2 python -m polarmask_serving.pod \
        --archive /models/model.mar --scratch /scratch

This process turns into Java, so that Java gets the signals meant for the container. Predictions
(8080) and metrics (8082) are reached from outside of the pod, management and gRPC are not. Nothing
but the scratch folder is written to. Who wants to know whether the model answers asks
`polarmask_serving.probe`.
"""

import argparse
import ipaddress
import json
import os
import sys
from pathlib import Path

from polarmask_serving import launch, probe
from polarmask_serving.archive import Archive, read_archive
from polarmask_serving.errors import ServerError, ServingError

_PORTS = {"inference_port": 8080, "metrics_port": 8082}


def prepare(archive: Archive, scratch: Path, *, host: str, workers: int) -> list[str]:
    """Write what TorchServe and probes read; return the command that serves the archive.

    Args:
        archive: The model to serve.
        scratch: Writable folder.
        host: Address of the pod.
        workers: Processes that each hold the model; one for each CPU or GPU.

    Raises:
        ServerError: An address, number or path that can't work.
    """
    if workers < 1:
        raise ServerError(f"WORKERS is {workers}: give 1 or more")
    if len(os.fsencode(scratch)) > launch.LONGEST_SCRATCH:
        raise ServerError(f"{scratch} is too long for the sockets in it; mount it elsewhere")
    ports = launch.choose_ports() | _PORTS
    settings = {
        "enable_model_api": "false",
        "load_models": archive.path.name,
        # One line: keyed by a version that is not the archive's, it would be ignored silently.
        "models": json.dumps({archive.name: {archive.version: _scale(archive, workers)}}),
    }
    config = launch.write_config(scratch, ports, settings, host=host)
    probe.Target(
        management=f"http://127.0.0.1:{ports['management_port']}",
        name=archive.name,
        version=archive.version,
    ).write(scratch)
    return launch.java_command(config, store=archive.path.parent, scratch=scratch)


def _scale(archive: Archive, workers: int) -> dict[str, object]:
    return {
        "defaultVersion": True,
        "marName": archive.path.name,
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 1,  # ms, paid by lone requests too
    }


def _read_host() -> str:
    text = os.environ.get("POD_IP", "")
    try:
        # TorchServe can't read an IPv6 address; Java hears both kinds at this one.
        return text if ipaddress.ip_address(text).version == 4 else "0.0.0.0"  # noqa: S104
    except ValueError as error:
        raise ServerError(
            f"POD_IP is {text!r}, no address; set it from the field status.podIP"
        ) from error


def _read_workers() -> int:
    text = os.environ.get("WORKERS", "1")
    try:
        return int(text)
    except ValueError as error:
        raise ServerError(f"WORKERS is {text!r}, not a number; set it to the cpu limit") from error


def main(arguments: list[str] | None = None) -> None:
    """Turn into the server; if that can't be, exit with 2 and an error in one line."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.pod")
    parser.add_argument("--archive", type=Path, required=True, help="the .mar to serve")
    parser.add_argument("--scratch", type=Path, required=True, help="writable folder, short path")
    options = parser.parse_args(arguments)
    try:
        archive, scratch = read_archive(options.archive.resolve()), options.scratch.resolve()
        command = prepare(archive, scratch, host=_read_host(), workers=_read_workers())
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"serving {archive.name} {archive.version}, sha256 {archive.sha256}", flush=True)
    os.chdir(scratch)
    os.execve(command[0], command, launch.java_environment(scratch))  # noqa: S606


if __name__ == "__main__":
    main()
