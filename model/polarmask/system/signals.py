"""SIGTERM, SIGHUP and SIGINT stop a run cleanly: the current step is finished and saved first.

Schedulers send SIGTERM and kill half a minute later; a closed terminal sends SIGHUP, Ctrl-C SIGINT.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from polarmask.errors import TrainingStopped
from polarmask.system.distributed import all_max

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class StopRequest:
    """Which signal was received, if any."""

    def __init__(self) -> None:
        self._signal_number = 0
        self._at_once = ""

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        self._signal_number = number
        if self._at_once:
            raise self.stopped(self._at_once)

    def is_requested(self, device: torch.device) -> bool:
        """Return whether any process received a signal; all processes call this together."""
        agreed = all_max(self._signal_number, device)
        if agreed:  # a signal received after the exchange counts at the next step
            self._signal_number = agreed
        return agreed > 0

    def stopped(self, progress: str) -> TrainingStopped:
        """Return the exception to raise; `progress` names what is saved."""
        name = signal.Signals(self._signal_number).name
        message = f"stopped by {name}: {progress}; start the same command again to resume"
        return TrainingStopped(message, self._signal_number)

    @contextmanager
    def at_once(self, progress: str) -> Iterator[None]:
        """Raise TrainingStopped at once on a signal: the block can be run again from its start."""
        self._at_once = progress
        try:
            if self._signal_number:
                raise self.stopped(progress)
            yield
        finally:
            self._at_once = ""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Record signals instead of being killed by them, until the end of the block.

    A signal that is ignored stays ignored, as nohup and background jobs need it.
    """
    request = StopRequest()
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread can handle signals
        yield request
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = [number for number, old in before.items() if old is not signal.SIG_IGN]
    for number in handled:
        signal.signal(number, request.note)
    try:
        yield request
    finally:
        for number in handled:
            signal.signal(number, before[number])


@contextmanager
def no_interrupts_in_children() -> Iterator[None]:
    """Keep Ctrl-C from the processes that start in the block: only this one reacts to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent() -> None:
    """End this process with the one that started it, which may be killed at any time.

    A worker of a pool would otherwise wait for ever for its next task.
    """
    threading.Thread(target=_end_after_parent, daemon=True).start()


def _end_after_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def ignore_signals(worker: int) -> None:
    """Keep a loader process alive when its process group is signalled: the step still needs it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
