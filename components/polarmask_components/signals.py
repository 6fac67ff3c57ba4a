"""Signals that stop a run: SIGTERM, and SIGHUP of a terminal that was closed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


def end_run(_number: int, _frame: FrameType | None) -> NoReturn:
    """End this run at once, as a handler."""
    # Not an Exception: no code on the way may handle it as a failed call.
    raise SystemExit("the run was stopped by a signal")


@contextmanager
def on_stop_signal(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call the handler for these signals inside the block.

    A signal that is ignored stays ignored, as nohup needs it. Only the main thread can set
    handlers: in another one this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number, old in before.items() if old is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
