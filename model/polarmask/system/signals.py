"""SIGTERM and SIGHUP end a run in order: the step under way is finished and saved first.

Schedulers ask with SIGTERM and kill half a minute later; a closed terminal sends SIGHUP.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from polarmask.errors import TrainingStopped
from polarmask.system.distributed import all_max

SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Which signal came, if any."""

    def __init__(self) -> None:
        self._signal_number = 0
        self._at_once = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._signal_number = number
        if self._at_once:
            raise self.stopped(self._at_once)

    def is_asked(self, device: torch.device) -> bool:
        """Tell whether a signal came to any process; all processes ask together."""
        agreed = all_max(self._signal_number, device)
        if agreed:  # a signal that came while they agreed on none waits for the next step
            self._signal_number = agreed
        return agreed > 0

    def stopped(self, progress: str) -> TrainingStopped:
        """Return the error to end with; `progress` says what is saved."""
        name = signal.Signals(self._signal_number).name
        message = f"stopped by {name}: {progress}; start the same command again to go on"
        return TrainingStopped(message, self._signal_number)

    @contextmanager
    def at_once(self, progress: str) -> Iterator[None]:
        """Let signals raise TrainingStopped from anywhere: what runs here can be run anew."""
        self._at_once = progress
        try:
            if self._signal_number:
                raise self.stopped(progress)
            yield
        finally:
            self._at_once = ""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note signals instead of dying of them, until the end of the block."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # others can't handle signals
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(worker: int) -> None:
    """Let a loader process live on when its whole group is asked to stop: a step needs it still."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
