"""Being asked to end: SIGTERM, and SIGHUP of a terminal that was closed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ASKING = (signal.SIGTERM, signal.SIGHUP)


def end_run(_number: int, _frame: FrameType | None) -> NoReturn:
    """End this run where it stands, as a handler."""
    # No Exception: nothing on the way may take it for an answer that failed.
    raise SystemExit("the run was asked to end")


@contextmanager
def when_asked_to_end(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call the handler for these signals inside the block.

    One that is ignored stays so, as nohup wants it.
    """
    before = {number: signal.getsignal(number) for number in _ASKING}
    heard = [number for number, old in before.items() if old is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
