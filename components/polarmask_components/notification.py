"""Webhooks: one POST with a short JSON message. Their addresses are secrets."""

from collections.abc import Mapping

import requests

from polarmask.errors import ConfigError
from polarmask.system.redaction import redact
from polarmask_components.retry import BUSY_STATUSES, SHORT_DEADLINE_SECONDS, retry

_TIMEOUT_SECONDS = 10
_DEADLINE_SECONDS = SHORT_DEADLINE_SECONDS


def check_webhook(address: str) -> None:
    """Raise ConfigError unless the address is empty or one of the web's."""
    if address and not address.startswith(("http://", "https://")):
        raise ConfigError("notify_webhook is no web address: give http(s)://..., or nothing")


def post(address: str, message: Mapping[str, str]) -> str:
    """Send a message; return for the log whether it arrived. Never raises a network error.

    Args:
        address: Of the webhook.
        message: Slack's webhooks, and those that follow them, show the field `text`.
    """

    def send() -> None:
        requests.post(address, json=dict(message), timeout=_TIMEOUT_SECONDS).raise_for_status()

    where = redact(address, address)
    try:
        retry(
            send,
            is_passing=_is_passing,
            deadline_seconds=_DEADLINE_SECONDS,
            server=where,
            reason_of=_reason_of,
        )
    except requests.RequestException as error:
        return f"could not notify {where}: {redact(_reason_of(error), address)}"
    return f"notified {where}"


def _is_passing(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in BUSY_STATUSES
    can_pass = isinstance(error, requests.ConnectionError | requests.Timeout)
    return can_pass and not isinstance(error, requests.exceptions.SSLError)


def _reason_of(error: Exception) -> str:
    """Describe an error without the address, which `requests` puts into its messages."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    cause = error.args[0] if error.args else error
    return f"{type(error).__name__}: {getattr(cause, 'reason', cause)}"
