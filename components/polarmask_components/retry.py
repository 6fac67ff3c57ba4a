"""Retries with exponential backoff until a deadline: for storage, Kubernetes and Kubeflow."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from polarmask.system.redaction import redact

logger = logging.getLogger(__name__)

BUSY_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""HTTP status codes of a server that may answer a later request."""
DEADLINE_SECONDS = 15 * 60.0
"""For work that runs for hours: a restart of a server must not end it."""
SHORT_DEADLINE_SECONDS = 20.0
"""For calls that somebody waits for, or that their caller repeats."""
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0
_LOGGED_CHARACTERS = 200

Answer = TypeVar("Answer")


def retry(
    call: Callable[[], Answer],
    *,
    is_passing: Callable[[Exception], bool],
    deadline_seconds: float = DEADLINE_SECONDS,
    server: str,
    reason_of: Callable[[Exception], object] = str,
) -> Answer:
    """Call until it succeeds, and return its result.

    The pause between calls doubles, from a quarter of a second up to half a minute.

    Args:
        call: What to do.
        is_passing: Whether an error may go away by itself; other errors are raised at once.
        deadline_seconds: No call begins later than this after the first one; 0 for a single call.
        server: For the log: what is called.
        reason_of: For the log: describes an error in a few words.

    Raises:
        Exception: The last error of `call`.
    """
    deadline = time.monotonic() + deadline_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:  # the caller decides which ones may pass
            if not is_passing(error) or time.monotonic() + pause > deadline:
                raise
            reason = " ".join(redact(str(reason_of(error))).split())[:_LOGGED_CHARACTERS]
            logger.warning("%s: %s; retrying in %.1f s", redact(server), reason, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
