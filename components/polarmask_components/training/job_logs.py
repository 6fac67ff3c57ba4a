"""The live log of a job's first node, printed; it survives lost connections and restarts."""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from polarmask_components.training.job_kinds import kind_of
from polarmask_components.training.training_job import TrainingJob

_SECONDS_BETWEEN_TRIES = 0.5
_TIME_OUT = (5, 60)
"""Seconds to connect, and of silence: then the stream is opened again, for the connection may be
dead."""
_SECONDS_TO_DRAIN = 5.0
_OVERLAP = timedelta(seconds=10)
"""A log that is opened again starts so long before its last printed line, for clocks that are set
back; what was printed already is left out."""


class JobLog:
    """Context that prints the log of the first pod, from a thread of its own.

    At the end it waits some seconds for the last lines, unless a signal stops the run.
    """

    def __init__(self, api: ApiClient, job: TrainingJob) -> None:
        self._api = api
        self._core = CoreV1Api(api)
        self._namespace = job.namespace
        self._container = kind_of(job).CONTAINER
        self._selector = kind_of(job).first_pod_of(job)
        self._uid = ""
        """Of the pod that was read last: another one has another log, and another node's clock."""
        self._printed: deque[tuple[datetime, str]] = deque()
        """Its last lines, each with its time by the node's clock."""
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
                self._print(follow=not is_last)
            except (ApiException, HTTPError, OSError, LookupError):
                # Not started yet, gone already, or a lost connection.
                is_last = is_last and time.monotonic() > self._deadline
            if is_last:
                return
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _print(self, *, follow: bool) -> None:
        """Print the lines that were not printed yet; LookupError if there is no pod."""
        pod = self._newest_pod()
        if pod.uid != self._uid:
            self._uid = pod.uid
            self._printed.clear()
        again = Counter(line for _, line in self._printed)
        for line in self._lines(pod.name, follow=follow):
            if again[line] > 0:
                again[line] -= 1
                continue
            stamp, _, text = line.partition(" ")
            try:
                self._remember(datetime.fromisoformat(stamp), line)
            except ValueError:  # the kubelet's own words, about a log that it can't read
                text = line
            print(text, flush=True)  # noqa: T201  # into the log of the step

    def _newest_pod(self) -> Any:  # noqa: ANN401  # V1ObjectMeta has no types
        """Return the metadata of the first node's pod; one that was replaced may still be there."""
        found = self._core.list_namespaced_pod(
            self._namespace, label_selector=self._selector, _request_timeout=_TIME_OUT
        )
        listed = [pod.metadata for pod in found.items]
        if not listed:
            raise LookupError("the first node has no pod")
        return max(listed, key=lambda each: each.creation_timestamp)

    def _remember(self, when: datetime, line: str) -> None:
        self._printed.append((when, line))
        while self._printed[0][0] < when - 2 * _OVERLAP:
            self._printed.popleft()

    def _lines(self, pod: str, *, follow: bool) -> Iterator[str]:
        options = {"container": self._container, "follow": follow, "timestamps": True}
        if self._printed:  # a log of days is not read again from its start
            since = (self._printed[-1][0] - _OVERLAP).astimezone(UTC)
            options["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        # The client's own method knows no sinceTime, and sinceSeconds mixes two clocks.
        answer = self._api.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            {"namespace": self._namespace, "name": pod},
            list(options.items()),
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=_TIME_OUT,
        )
        try:
            rest = b""
            for block in answer.stream(amt=None):
                *lines, rest = (rest + block).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
            if rest:
                yield rest.decode(errors="replace")
        finally:
            answer.close()
