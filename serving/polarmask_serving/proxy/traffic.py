"""How many live requests a candidate gets: the entries of a ConfigMap that running proxies read."""

import json

COPIES = "polarmask.copies"
"""Share of requests that the candidate gets copies of; clients get the stable version's answer."""
SHARE = "polarmask.share"
"""Share of requests that the candidate answers."""


def entries(*, copies: float, share: float) -> dict[str, str]:
    """Return the entries for these shares of all requests, in [0, 1]."""
    # As JSON, since Envoy takes a bare number for percent.
    return {
        key: json.dumps({"numerator": round(value * 10_000), "denominator": "TEN_THOUSAND"})
        for key, value in ((COPIES, copies), (SHARE, share))
    }
