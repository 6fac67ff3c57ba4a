"""A training job on a cluster, from submission to result; nothing of it stays behind."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes.client import ApiClient, CustomObjectsApi, V1DeleteOptions
from kubernetes.client.exceptions import ApiException

from polarmask_components.cluster.connection import call_api, refusal_of
from polarmask_components.errors import ClusterError, LaunchError
from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_components.run.signals import when_asked_to_end
from polarmask_components.training.job_logs import JobLog
from polarmask_components.training.job_pods import JobPods
from polarmask_components.training.job_storage import JobStorage, Result
from polarmask_components.training.pytorchjob import (
    GROUP,
    PLURAL,
    SPEC_ANNOTATION,
    VERSION,
    TrainingJob,
    state_of,
)

logger = logging.getLogger(__name__)

_ENDED_BY_SIGTERM = 143


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to look and how long to wait, in seconds."""

    look: float = 5.0
    stuck: float = 300.0
    """A pod whose image or secret is missing may still get it."""
    removal: float = 180.0
    """Pods have two minutes to stop."""
    cleanup_deadline: float = 20.0
    """With an API that gives no answer, when a job has to be removed: half a minute may be all."""


PACE = Pace()


def run_job(job: TrainingJob, storage: JobStorage, api: ApiClient, *, pace: Pace = PACE) -> Result:
    """Run a job to its end and return what it left in storage.

    A job of an earlier try goes on if it asks for the same, and is replaced if it failed. What has
    finished already is returned at once.

    Args:
        job: What to train.
        storage: Its folder in object storage; holds the inputs already.
        api: Of the cluster.
        pace: For tests.

    Raises:
        LaunchError: The job failed, could not start, or another one has its name; says why, with
            the last words of the pods that failed.
        ClusterError: The cluster can't be reached or refuses.
        SystemExit: SIGTERM or SIGHUP came; the job is deleted.
    """
    launched = _Launched(job, api, pace)
    with when_asked_to_end(lambda *_: sys.exit(_ENDED_BY_SIGTERM)), launched:
        if _finished(job, storage) is None:
            launched.submit()
            launched.follow(storage)
        else:
            logger.info("%s holds the result already", storage.where)
            launched.take_over()
    result = _finished(job, storage)
    if result is None:
        raise LaunchError(f"{launched.what} succeeded, but left no result in {storage.where}")
    return result


def _finished(job: TrainingJob, storage: JobStorage) -> Result | None:
    result = storage.result()
    if result is not None and result.spec != job.spec_sha256:
        raise LaunchError(
            f"{storage.where} holds the result of a job of this run that asked for something else; "
            "start a new run, or delete that folder"
        )
    return result


class _Launched:
    """A job on the cluster; as a context it leaves none behind, however the block ends."""

    def __init__(self, job: TrainingJob, api: ApiClient, pace: Pace) -> None:
        self.what = f"PyTorchJob {job.namespace}/{job.name}"
        self._job = job
        self._pace = pace
        self._custom = CustomObjectsApi(api)
        self._api = api
        self._pods = JobPods(api, job)
        self._is_ours = False

    def __enter__(self) -> "_Launched":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._is_ours:
            return
        asked_to_end = kind is not None and not issubclass(kind, Exception)
        try:
            with when_asked_to_end(lambda *_: None):  # that is what is being done
                self._delete(self._pace.cleanup_deadline)
            if not asked_to_end:  # then every second counts
                self._wait_until_gone()
        except (ClusterError, ApiException, LaunchError) as error:
            logger.warning("%s may still be there: %s", self.what, error)

    def submit(self) -> None:
        """Create the job, or take over that of an earlier try.

        Raises:
            LaunchError: The cluster does not take it, or a job of this name asks for other things.
        """
        while not self._create():
            there = self._get()
            if there is None:
                continue
            if "deletionTimestamp" in there["metadata"]:
                self._wait_until_gone()
                continue
            if not self._asks_for_the_same(there):
                raise LaunchError(
                    f"{self.what} is there already and asks for something else; delete it (kubectl "
                    f"-n {self._job.namespace} delete pytorchjob {self._job.name}), or start a new "
                    "run"
                )
            self._is_ours = True
            if state_of(there)[0] != "Failed":
                logger.info("%s goes on", self.what)
                return
            logger.info("%s of an earlier try failed: replaced", self.what)
            self._delete()
            self._wait_until_gone()

    def take_over(self) -> None:
        """Make a job of an earlier try, if it is there still, one to be removed."""
        there = self._get()
        self._is_ours = there is not None and self._asks_for_the_same(there)

    def _asks_for_the_same(self, there: Mapping[str, Any]) -> bool:
        notes = there["metadata"].get("annotations", {})
        return bool(notes.get(SPEC_ANNOTATION) == self._job.spec_sha256)

    def _create(self) -> bool:
        """Return whether it worked; False if the name is taken."""
        self._is_ours = True  # before: being asked to end may hide the answer
        try:
            self._ask(self._custom.create_namespaced_custom_object, body=self._job.manifest())
        except ApiException as error:
            self._is_ours = False
            if error.status == 409:
                return False
            raise LaunchError(f"{self.what} is not accepted: {_why_refused(error)}") from error
        logger.info("%s is submitted: %d nodes", self.what, self._job.nodes)
        return True

    def _get(self) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = self._ask(
                self._custom.get_namespaced_custom_object, name=self._job.name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def _delete(self, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        try:
            self._ask(
                self._custom.delete_namespaced_custom_object,
                name=self._job.name,
                body=V1DeleteOptions(propagation_policy="Foreground"),
                deadline_seconds=deadline_seconds,
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _ask(self, method: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401  # whatever the API answers
        kind: dict[str, Any] = {"group": GROUP, "version": VERSION, "plural": PLURAL}
        return call_api(method, namespace=self._job.namespace, **kind, **options)

    def _wait_until_gone(self) -> None:
        give_up = time.monotonic() + self._pace.removal
        while self._get() is not None:
            if time.monotonic() > give_up:
                raise LaunchError(
                    f"{self.what} does not go away in {self._pace.removal:.0f} s: look for pods "
                    "that don't end and for finalizers"
                )
            time.sleep(min(self._pace.look, 1.0))

    def follow(self, storage: JobStorage) -> None:
        """Wait for success, printing what the first node says.

        Raises:
            LaunchError: It ended otherwise.
        """
        with self._logged():
            began, started, before = time.monotonic(), False, ""
            while True:
                there = self._get()
                self._pods.look()
                if there is None:
                    if _finished(self._job, storage) is None:
                        raise self._failure("was deleted while it trained")
                    return  # its time to live was over
                state, message = state_of(there)
                if state != before:
                    logger.info("%s: %s", self.what, state or "seen by no controller yet")
                    before = state
                if state == "Succeeded":
                    return
                started = started or state in ("Running", "Restarting")
                self._stop_if_hopeless(state, message, started, time.monotonic() - began)
                time.sleep(self._pace.look)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        log = JobLog(self._api, self._job)
        try:
            yield
        except Exception:
            log.close(drain=True)
            raise
        except BaseException:
            log.close(drain=False)
            raise
        log.close(drain=True)

    def _stop_if_hopeless(self, state: str, message: str, started: bool, seconds: float) -> None:
        settings = self._job.settings
        if state == "Failed":
            raise self._failure(f"failed: {message}{_mended(message)}")
        refusal = self._pods.refusal()
        if refusal:
            raise self._failure("can't work, and another try would not help")
        if self._pods.restarts() > self._job.most_restarts:
            raise self._failure(
                f"failed again after {self._job.most_restarts} restarts, "
                f"{settings.max_restarts} a node (train_job.max_restarts)"
            )
        stuck = self._pods.stuck(self._pace.stuck)
        if stuck:
            raise self._failure(f"can't start: {stuck}")
        if not started and seconds > settings.start_timeout_minutes * 60:
            raise self._failure(
                f"did not start in {settings.start_timeout_minutes:g} minutes "
                f"(train_job.start_timeout_minutes){_why_waiting(state, settings.queue)}"
            )
        # The operator has to see to it; should it not run, this does.
        if seconds > settings.deadline_hours * 3600 + self._pace.removal:
            raise self._failure(
                f"is not done after {settings.deadline_hours:g} hours (train_job.deadline_hours)"
            )

    def _failure(self, words: str) -> LaunchError:
        return LaunchError(f"{self.what} {words}\n{self._pods.diagnosis()}")


def _why_refused(error: ApiException) -> str:
    words = refusal_of(error)
    if error.status == 404 and "namespace" not in words:
        return f"the cluster knows no PyTorchJob ({words}); install training-operator v1"
    if error.status == 404:
        return f"{words}; train_job.namespace has to exist"
    return words


def _why_waiting(state: str, queue: str) -> str:
    if state == "Suspended":
        return f": the queue {queue!r} (train_job.queue) has not admitted it"
    if not state:
        return ": no controller took it up; is training-operator running?"
    return ""


def _mended(message: str) -> str:
    if "backoff limit" in message:
        return " (train_job.max_restarts)"
    if "deadline" in message:
        return " (train_job.deadline_hours)"
    return ""
