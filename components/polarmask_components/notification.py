"""Webhooks: one POST with a short JSON message."""

from collections.abc import Mapping

import requests

from polarmask.errors import ConfigError

_TIMEOUT_SECONDS = 10
_TRIES = 3


def check_webhook(address: str) -> None:
    """Raise ConfigError unless the address is empty or one of the web's."""
    if address and not address.startswith(("http://", "https://")):
        raise ConfigError(f"notify_webhook is {address!r}: give an http(s) address, or nothing")


def post(address: str, message: Mapping[str, str]) -> str:
    """Send a message; return for the log whether it arrived. Never raises a network error."""
    problem = ""
    for _ in range(_TRIES):
        try:
            answer = requests.post(address, json=dict(message), timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
        except requests.RequestException as error:
            problem = str(error)
        else:
            return f"notified {address}"
    return f"could not notify {address}: {problem}"
