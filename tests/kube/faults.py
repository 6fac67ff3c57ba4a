"""Faults that a test injects into the server."""

import re
import threading
from dataclasses import dataclass


@dataclass
class Fault:
    """One thing that goes wrong, with requests whose `METHOD /path?query` matches."""

    match: str
    """Regular expression, searched in for example `GET /api/v1/namespaces/ml/pods?watch=true`."""
    times: int = 1
    """How many requests suffer."""
    skip: int = 0
    """How many matching requests pass before."""
    status: int = 0
    """Answer with this HTTP status (409: a conflict) and do nothing."""
    drop: bool = False
    """Close the connection without an answer, and do nothing."""
    lose_answer: bool = False
    """Do what was asked, then close the connection without an answer."""
    delay: float = 0.0
    """Wait for so many seconds before anything else."""
    cut_after: int | None = None
    """End a stream (watch, log) in the middle, after so many lines."""
    line_delay: float = 0.0
    """Wait for so many seconds before each line of a stream."""
    hits: int = 0
    """How many requests suffered so far."""


class Faults:
    """The faults of one server, in the order in which they were added."""

    def __init__(self):
        self._faults = []
        self._lock = threading.Lock()

    def add(self, fault):
        """Add a fault; return it, so that a test can read its `hits`."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self):
        with self._lock:
            self._faults.clear()

    def strike(self, request):
        """Return the fault for this request (`METHOD /path?query`), or None."""
        with self._lock:
            for fault in self._faults:
                if fault.hits < fault.times and re.search(fault.match, request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.hits += 1
                    return fault
        return None
