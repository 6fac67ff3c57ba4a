"""Init container of a serving pod: fetch the archive that the Deployment names, and verify it.

    MODEL_URI=s3://bucket/registry/models/VERSION.mar MODEL_SHA256=HASH \
        python -m polarmask_components.deploy.fetch_model --out /models/model.mar

Endpoint and credentials come from the environment, as boto3 reads it. Only the init container
has them: the server that clients reach has none.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

from polarmask.system.command_line import run_command
from polarmask_components.errors import DamagedObjectError, StorageError
from polarmask_components.storage.objects import fetch_file

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_model(uri: str, sha256: str, out: Path) -> None:
    """Fetch an archive, unless it is there already, as after a restart of the pod's containers.

    Args:
        uri: s3://bucket/key.
        sha256: Hex digest of the file.
        out: Where to put it.

    Raises:
        StorageError: Names what has to be fixed: Deployment, storage or volume.
    """
    if not uri:
        raise StorageError(
            "no model was deployed here yet (MODEL_URI is empty); the pipeline's deploy step does"
        )
    if not re.fullmatch(r"s3://[^/]+/.+", uri):
        raise StorageError(f"MODEL_URI is {uri!r}: give s3://bucket/key")
    if not _SHA256.fullmatch(sha256):
        raise StorageError(f"MODEL_SHA256 is {sha256!r}: give the archive's 64 hex digits")
    try:
        fetch_file(uri, out, sha256=sha256)
    except DamagedObjectError as error:
        raise StorageError(
            f"{error}; check that it exists, or remove it from the registry and deploy again"
        ) from error
    except OSError as error:
        raise StorageError(f"{out} can't be written: {error}; give the volume more room") from error


def main(arguments: list[str] | None = None) -> int:
    """Fetch what the environment names; 2 means an error, in one line."""
    return run_command(lambda: _run(arguments), prefix="error", errors=(StorageError,))


def _run(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(prog="polarmask_components.deploy.fetch_model")
    parser.add_argument("--out", type=Path, required=True, help="the .mar to write")
    out = parser.parse_args(arguments).out
    uri = os.environ.get("MODEL_URI", "")
    started = time.monotonic()
    fetch_model(uri, os.environ.get("MODEL_SHA256", ""), out)
    megabytes, seconds = out.stat().st_size / 1e6, time.monotonic() - started
    print(f"{uri} is in {out}, verified: {megabytes:.1f} MB, {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
