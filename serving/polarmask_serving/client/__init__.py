"""Clients of the server.

The names here are the public ones; `client.client` documents them.
"""

from polarmask_serving.client.client import (
    Client,
    ClientError,
    FaultyAnswerError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)

__all__ = [
    "Client",
    "ClientError",
    "FaultyAnswerError",
    "RefusedError",
    "UnauthorizedError",
    "UnavailableError",
]
