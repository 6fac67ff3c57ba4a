"""The log of a job's first node, live; lost connections and restarts neither end nor repeat it."""

import threading
import time
from collections.abc import Iterator

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from polarmask_components.training.pytorchjob import CONTAINER, TrainingJob

_SECONDS_BETWEEN_TRIES = 0.5
_SECONDS_TO_CONNECT = 5
_SECONDS_OF_SILENCE = 60
"""After this the stream is opened anew: it may be dead without a word."""
_SECONDS_TO_DRAIN = 5.0
_SECONDS_TO_BE_SURE = 10
"""That an opened log begins before the last line that was heard."""


class JobLog:
    """Prints what the first pod says, from a thread of its own, until `close`."""

    def __init__(self, api: ApiClient, job: TrainingJob) -> None:
        self._core = CoreV1Api(api)
        self._namespace = job.namespace
        self._pod = f"{job.name}-{'worker' if job.min_nodes else 'master'}-0"
        self._last = ""
        """Time of the last line that was printed, by the node's clock."""
        self._heard = 0.0
        """When that was, by this machine's."""
        self._give_up = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self, *, drain: bool) -> None:
        """Stop; `drain` waits for the last words, some seconds at most."""
        self._give_up = time.monotonic() + _SECONDS_TO_DRAIN
        self._closing.set()
        if drain:
            self._thread.join(_SECONDS_TO_DRAIN)

    def _run(self) -> None:
        while True:
            is_last = self._closing.is_set()
            try:
                for line in self._lines(follow=not is_last):
                    self._print(line)
            except (ApiException, HTTPError, OSError):
                # Not started yet, gone already, or a lost connection.
                is_last = is_last and time.monotonic() > self._give_up
            if is_last:
                return
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _lines(self, *, follow: bool) -> Iterator[str]:
        options = {}
        if self._last:  # a log of days is not read anew from its start
            options["since_seconds"] = round(time.monotonic() - self._heard) + _SECONDS_TO_BE_SURE
        answer = self._core.read_namespaced_pod_log(
            self._pod,
            self._namespace,
            container=CONTAINER,
            follow=follow,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(_SECONDS_TO_CONNECT, _SECONDS_OF_SILENCE),
            **options,
        )
        try:
            rest = b""
            for block in answer.stream(amt=None):
                *lines, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        finally:
            answer.close()

    def _print(self, line: str) -> None:
        """Print a line that is newer than the last: what is opened anew begins before it."""
        stamp, _, text = line.partition(" ")
        if stamp > self._last:
            self._last, self._heard = stamp, time.monotonic()
            print(text, flush=True)  # noqa: T201  # into the log of the step
