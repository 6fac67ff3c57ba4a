"""Take secrets out of texts for logs and errors: tokens in URLs, addresses of webhooks."""

import re

_HIDDEN = "***"
_USER = re.compile(r"(?<=://)[^/\s'\"]+@")
"""User and password, or a token in place of them."""
_QUERY = re.compile(
    r"([?&][^=&\s]*(?:token|secret|password|sig|auth|access|key)[^=&\s]*=)[^&\s'\"]+", re.I
)


def redact(text: str, *secret_addresses: str) -> str:
    """Return a text without the users, passwords and tokens of the URLs in it.

    Args:
        text: For people.
        secret_addresses: URLs that are secrets as a whole, as those of webhooks: only scheme and
            host stay.
    """
    for address in secret_addresses:
        _, _, host_and_more = address.partition("://")
        _, slash, secret = host_and_more.partition("/")
        if secret:
            text = text.replace(slash + secret, slash + _HIDDEN)
    return _QUERY.sub(rf"\1{_HIDDEN}", _USER.sub(f"{_HIDDEN}@", text))
