"""Output of containers by start, for the pods/log endpoint and for tests."""

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from kube.clock import precise_now


@dataclass
class Run:
    """The output of one start of a container."""

    lines: list = field(default_factory=list)  # (time, text with its newline)
    finished: bool = False


class LogBook:
    """Logs of all containers; they outlive their pods, for tests to read."""

    def __init__(self):
        self.changed = threading.Condition()
        self._runs = {}  # (namespace, pod, uid, container) -> [Run]

    def start(self, pod, container):
        """Open the log of a container's next start; return it for `write` and `finish`."""
        meta = pod["metadata"]
        run = Run()
        with self.changed:
            key = (meta["namespace"], meta["name"], meta["uid"], container)
            self._runs.setdefault(key, []).append(run)
            self.changed.notify_all()
        return run

    def write(self, run, text, stamp=""):
        """Add one line, with its time by the clock and in the zone of the node; now if empty."""
        with self.changed:
            run.lines.append((stamp or precise_now(), text))
            self.changed.notify_all()

    def finish(self, run):
        with self.changed:
            run.finished = True
            self.changed.notify_all()

    def text(self, pod, container=None):
        """Return all output of pods of this name, in the order of their starts."""
        with self.changed:
            return "".join(
                text
                for (_, name, _, of), runs in self._runs.items()
                if name == pod and container in (None, of)
                for run in runs
                for _, text in run.lines
            )

    def run_of(self, pod, container, *, previous=False):
        """Return the last start of a container, or the one before; None if there is none."""
        meta = pod["metadata"]
        runs = self._runs.get((meta["namespace"], meta["name"], meta["uid"], container), [])
        index = 2 if previous else 1
        return runs[-index] if len(runs) >= index else None

    def lines(self, run, *, follow, query, is_over):
        """Yield a run's lines as the endpoint's options ask for.

        Args:
            run: What to read.
            follow: Continue until the container ends.
            query: tailLines, sinceTime, sinceSeconds and timestamps, as text.
            is_over: Called between lines: whether the server stops.
        """
        position, since = self._first(run, query), _since(query)
        stamped = query.get("timestamps", "").lower() == "true"
        while True:
            with self.changed:
                waiting = position == len(run.lines) and follow and not run.finished
                if waiting and not is_over():
                    self.changed.wait(0.5)
                batch = run.lines[position:]
                over = not batch and (run.finished or not follow)
            for time, text in batch:
                if since and datetime.fromisoformat(time) < since:
                    continue
                yield f"{time} {text}" if stamped else text
            position += len(batch)
            if over or is_over():
                return

    def _first(self, run, query):
        """Return the first of the last lines that a reader wants."""
        with self.changed:
            return max(0, len(run.lines) - int(query["tailLines"])) if "tailLines" in query else 0


def _since(query):
    """Return the time from which on a reader wants lines, or None."""
    if "sinceTime" in query:
        return datetime.fromisoformat(query["sinceTime"])
    if "sinceSeconds" in query:
        return datetime.now(UTC) - timedelta(seconds=float(query["sinceSeconds"]))
    return None
