"""A trial, as the proxy sees it: where the candidate is, and how many live requests it gets.

The shares are entries of a ConfigMap that running proxies read. The rest of the proxy's part are
the pieces of `envoy.yaml` with `if: trial`.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from polarmask_serving.errors import ServerError

COPIES = "polarmask.copies"
"""Share of requests that the candidate gets copies of; clients get the stable version's answer."""
SHARE = "polarmask.share"
"""Share of requests that the candidate answers."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where a new model may be tried on live requests."""

    host: str
    port: int
    """Of the candidate's Service."""
    traffic: Path
    """Folder of a mounted ConfigMap with the shares, see `entries`."""


def read_trial() -> Trial | None:
    """Return where a candidate may be tried, from the environment.

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


def entries(*, copies: float, share: float) -> dict[str, str]:
    """Return the entries for these shares of all requests, in [0, 1]."""
    # As JSON, since Envoy takes a bare number for percent.
    return {
        key: json.dumps({"numerator": round(value * 10_000), "denominator": "TEN_THOUSAND"})
        for key, value in ((COPIES, copies), (SHARE, share))
    }
