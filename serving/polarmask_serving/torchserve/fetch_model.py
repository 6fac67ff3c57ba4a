"""Init container of a serving pod: fetch the archive that the Deployment names, and verify it.

    MODEL_URI=s3://bucket/archives/HASH.mar MODEL_SHA256=HASH \
        python -m polarmask_serving.torchserve.fetch_model --out /models/model.mar

Endpoint and credentials come from the environment, as boto3 reads it. Only the init container
needs them: the server that strangers talk to has none.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from polarmask.system.files import atomic_path, sha256_of_file
from polarmask_serving.errors import FetchError

# Servers other than AWS may not know the checksums that boto3 asks for unasked; we have our own.
_CONFIG = Config(
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 5},
    response_checksum_validation="when_required",
)
_URI = re.compile(r"s3://(?P<bucket>[^/]+)/(?P<key>.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch_model(uri: str, sha256: str, out: Path) -> None:
    """Fetch an archive; it appears whole and verified or not at all.

    One that is there already, as after a restart of the pod's containers, stays.

    Args:
        uri: s3://bucket/key.
        sha256: Hex digest of the file.
        out: Where to put it.

    Raises:
        FetchError: Says whether Deployment, store or disk has to be mended.
    """
    if not uri:
        raise FetchError(
            "no model was deployed here yet (MODEL_URI is empty); the pipeline's deploy step does"
        )
    place = _URI.fullmatch(uri)
    if place is None:
        raise FetchError(f"MODEL_URI is {uri!r}: give s3://bucket/key")
    if not _SHA256.fullmatch(sha256):
        raise FetchError(f"MODEL_SHA256 is {sha256!r}: give the archive's 64 hex digits")
    if out.is_file() and sha256_of_file(out) == sha256:
        return
    try:
        with atomic_path(out) as temporary:
            client = boto3.client("s3", config=_CONFIG)
            client.download_file(place["bucket"], place["key"], str(temporary))
            found = sha256_of_file(temporary)
            if found != sha256:
                raise FetchError(
                    f"{uri} has sha256 {found}, not {sha256}: it was damaged or replaced; remove "
                    "it from the store and deploy the model again"
                )
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise FetchError(
            f"{uri} can't be fetched: {error}; check that it exists, AWS_ENDPOINT_URL and the "
            "credentials of this container"
        ) from error
    except OSError as error:
        raise FetchError(f"{out} can't be written: {error}; give the volume more room") from error


def main(arguments: list[str] | None = None) -> int:
    """Fetch what the environment names; 2 stands for an error in one line."""
    parser = argparse.ArgumentParser(prog="polarmask_serving.torchserve.fetch_model")
    parser.add_argument("--out", type=Path, required=True, help="the .mar to write")
    out = parser.parse_args(arguments).out
    uri = os.environ.get("MODEL_URI", "")
    started = time.monotonic()
    try:
        fetch_model(uri, os.environ.get("MODEL_SHA256", ""), out)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    megabytes, seconds = out.stat().st_size / 1e6, time.monotonic() - started
    print(f"{uri} is in {out}, verified: {megabytes:.1f} MB, {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
