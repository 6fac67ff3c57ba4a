"""The live log of a job's first node, printed; it survives lost connections and restarts."""

import threading
import time
from collections.abc import Iterator
from typing import Self

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from polarmask_components.training.pytorchjob import first_pod
from polarmask_components.training.training_job import CONTAINER, TrainingJob

_SECONDS_BETWEEN_TRIES = 0.5
_SECONDS_TO_CONNECT = 5
_SECONDS_OF_SILENCE = 60
"""After this the stream is opened again: the connection may be dead."""
_SECONDS_TO_DRAIN = 5.0
_SECONDS_OF_OVERLAP = 10
"""So that a log that is opened again starts before the last printed line."""


class JobLog:
    """Context that prints the log of the first pod, from a thread of its own.

    At the end it waits some seconds for the last lines, unless a signal stops the run.
    """

    def __init__(self, api: ApiClient, job: TrainingJob) -> None:
        self._core = CoreV1Api(api)
        self._namespace = job.namespace
        self._pod = first_pod(job)
        self._last = ""
        """Time of the last printed line, by the node's clock."""
        self._printed = 0.0
        """When that was, by this machine's."""
        self._deadline = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._deadline = time.monotonic() + _SECONDS_TO_DRAIN
        self._closing.set()
        if kind is None or issubclass(kind, Exception):
            self._thread.join(_SECONDS_TO_DRAIN)

    def _run(self) -> None:
        while True:
            is_last = self._closing.is_set()
            try:
                for line in self._lines(follow=not is_last):
                    self._print(line)
            except (ApiException, HTTPError, OSError):
                # Not started yet, gone already, or a lost connection.
                is_last = is_last and time.monotonic() > self._deadline
            if is_last:
                return
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _lines(self, *, follow: bool) -> Iterator[str]:
        options = {}
        if self._last:  # a log of days is not read again from its start
            options["since_seconds"] = round(time.monotonic() - self._printed) + _SECONDS_OF_OVERLAP
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
        """Print a line unless it was printed already."""
        stamp, _, text = line.partition(" ")
        if stamp > self._last:
            self._last, self._printed = stamp, time.monotonic()
            print(text, flush=True)  # noqa: T201  # into the log of the step
