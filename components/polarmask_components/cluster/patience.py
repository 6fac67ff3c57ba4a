"""Trying again: what runs for days has to outlive a bad quarter of an hour of what it stands on."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 15 * 60.0
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 30.0

Answer = TypeVar("Answer")


def persist(
    call: Callable[[], Answer],
    *,
    whom: str,
    passes: Callable[[Exception], str],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Answer:
    """Call until it works, with growing pauses; let the last error through when time is up.

    Args:
        call: What to do.
        whom: Who is called, for the log.
        passes: Returns in words what may pass by itself, or "" for an error that will stay.
        patience_seconds: No try begins later than this.
    """
    give_up = time.monotonic() + patience_seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            words = passes(error)
            if not words or time.monotonic() + pause > give_up:
                raise
            logger.warning("%s: %s; next try in %.1f s", whom, words, pause)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
