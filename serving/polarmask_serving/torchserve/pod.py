"""Main container of a serving pod: become a TorchServe that serves one archive.

    WORKERS=2 python -m polarmask_serving.torchserve.pod \
        --archive /models/model.mar --scratch /scratch

This process turns into Java, so that Java gets the signals meant for the container. It listens on
loopback alone; the proxy in the pod's other container (`polarmask_serving.proxy.main`) reads its
ports from the scratch folder. It writes to that folder only. Whether the model answers is
checked by `polarmask_serving.torchserve.probe`. A laptop runs the same two programs (`local_pod`).
"""

import argparse
import json
import os
import sys
from pathlib import Path

from polarmask_serving.archive.read import Archive, read_archive
from polarmask_serving.errors import ServerError, ServingError
from polarmask_serving.torchserve import launch, probe


def prepare(archive: Archive, scratch: Path, *, workers: int) -> list[str]:
    """Write what TorchServe and probes read; return the command that serves the archive.

    Args:
        archive: The model to serve.
        scratch: Writable folder.
        workers: Processes that each hold the model; one for each CPU or GPU.

    Raises:
        ServerError: A number or path that can't work.
    """
    if workers < 1:
        raise ServerError(f"WORKERS is {workers}: give 1 or more")
    if len(os.fsencode(scratch)) > launch.LONGEST_SCRATCH:
        raise ServerError(f"{scratch} is too long for the sockets in it; mount it elsewhere")
    names = launch.PORT_NAMES
    ports = _known_ports(scratch) or dict(zip(names, launch.free_ports(len(names)), strict=True))
    model = {
        "defaultVersion": True,
        "marName": archive.path.name,
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 1,  # ms, paid by lone requests too
    }
    settings = {
        "enable_model_api": "false",
        "load_models": archive.path.name,
        # One line: keyed by a version that is not the archive's, it would be ignored silently.
        "models": json.dumps({archive.name: {archive.version: model}}),
    }
    config = launch.write_config(scratch, ports, settings)
    probe.Target(
        ports=ports,
        name=archive.name,
        version=archive.version,
        workers=workers,
    ).write(scratch)
    return launch.java_command(config, store=archive.path.parent, scratch=scratch)


def _known_ports(scratch: Path) -> dict[str, int] | None:
    """Return the ports before a restart of the container: the proxy still uses them."""
    try:
        return probe.Target.read(scratch).ports
    except (OSError, ValueError, TypeError):
        return None


def _read_workers() -> int:
    text = os.environ.get("WORKERS", "1")
    try:
        return int(text)
    except ValueError as error:
        raise ServerError(f"WORKERS is {text!r}, not a number; set it to the cpu limit") from error


def main(arguments: list[str] | None = None) -> None:
    """Turn into the server; if that can't be, exit with 2 and an error in one line."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.torchserve.pod")
    parser.add_argument("--archive", type=Path, required=True, help="the .mar to serve")
    parser.add_argument("--scratch", type=Path, required=True, help="writable folder, short path")
    options = parser.parse_args(arguments)
    try:
        archive, scratch = read_archive(options.archive.resolve()), options.scratch.resolve()
        command = prepare(archive, scratch, workers=_read_workers())
    except ServingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"serving {archive.name} {archive.version}, sha256 {archive.sha256}", flush=True)
    os.chdir(scratch)
    os.execve(command[0], command, launch.java_environment(scratch))  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main()
