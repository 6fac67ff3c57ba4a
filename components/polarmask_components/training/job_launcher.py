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
from polarmask_components.errors import ClusterError, LaunchError, NotStartedError
from polarmask_components.retry import DEADLINE_SECONDS
from polarmask_components.signals import on_stop_signal
from polarmask_components.training.job_kinds import kind_of
from polarmask_components.training.job_logs import JobLog
from polarmask_components.training.job_pods import JobPods
from polarmask_components.training.job_storage import JobStorage, Result
from polarmask_components.training.training_job import SPEC_ANNOTATION, TrainingJob

logger = logging.getLogger(__name__)

_EXIT_CODE_OF_SIGTERM = 143


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often to look and how long to wait, in seconds."""

    look: float = 5.0
    stuck: float = 300.0
    """For a pod whose image or secret is missing: it may still get it."""
    removal: float = 180.0
    """For the pods to stop, which have two minutes."""
    cleanup_deadline: float = 20.0
    """For an API that does not respond when a job has to be removed: SIGKILL may come soon."""


PACE = Pace()


def run_job(job: TrainingJob, storage: JobStorage, api: ApiClient, *, pace: Pace = PACE) -> Result:
    """Run a job to its end and return what it left in storage.

    A job of an earlier try continues if its spec is equal, and is replaced if it failed. A result
    that is there already is returned at once.

    Args:
        job: What to train.
        storage: Its folder in object storage; holds the inputs already.
        api: Of the cluster.
        pace: For tests.

    Raises:
        LaunchError: The job failed, could not start, or another one has its name; says why, with
            the last lines of the pods that failed.
        ClusterError: The cluster can't be reached or refuses.
        SystemExit: SIGTERM or SIGHUP came; the job is deleted.
    """
    launched = _Launched(job, api, pace)
    with on_stop_signal(lambda *_: sys.exit(_EXIT_CODE_OF_SIGTERM)), launched.removed_at_the_end():
        if _finished(job, storage) is None:
            launched.submit()
            launched.follow(storage)
        else:
            logger.info("%s holds the result already", storage.where)
            launched.adopt(launched.get())
    result = _finished(job, storage)
    if result is None:
        raise LaunchError(f"{launched.what} succeeded, but left no result in {storage.where}")
    return result


def _finished(job: TrainingJob, storage: JobStorage) -> Result | None:
    result = storage.result()
    if result is not None and result.spec != job.spec_sha256:
        raise LaunchError(
            f"{storage.where} holds the result of a job of this run with another spec; start a new "
            "run, or delete that folder"
        )
    return result


class _Launched:
    """A job on the cluster."""

    def __init__(self, job: TrainingJob, api: ApiClient, pace: Pace) -> None:
        self._kind = kind_of(job)
        self.what = f"{self._kind.RESOURCE.kind} {job.namespace}/{job.name}"
        self._job = job
        self._pace = pace
        self._custom = CustomObjectsApi(api)
        self._api = api
        self._pods = JobPods(api, job)
        self._is_ours = False
        """Whether a job on the cluster is to be removed at the end."""

    @contextmanager
    def removed_at_the_end(self) -> Iterator[None]:
        """Delete the job when the block ends, however it ends."""
        try:
            yield
        except Exception:  # whatever it is, the job must not keep its GPUs
            self._clean_up(wait=True)
            raise
        except BaseException:  # a signal: then every second counts
            self._clean_up(wait=False)
            raise
        self._clean_up(wait=True)

    def _clean_up(self, *, wait: bool) -> None:
        if not self._is_ours:
            return
        try:
            with on_stop_signal(lambda *_: None):  # already stopping
                self._delete(self._pace.cleanup_deadline)
            if wait:
                self._wait_until_gone()
        except (ClusterError, ApiException, LaunchError) as error:
            logger.warning("%s may still be there: %s", self.what, error)

    def submit(self) -> None:
        """Create the job, or continue with that of an earlier try.

        Raises:
            LaunchError: The cluster refuses it, or a job of this name has another spec.
        """
        while not self._create():
            existing = self.get()
            if existing is None:
                continue  # it went away meanwhile
            is_leaving = "deletionTimestamp" in existing["metadata"]
            if not is_leaving and not self.adopt(existing):
                raise LaunchError(
                    f"{self.what} exists already, with another spec; delete it (kubectl "
                    f"-n {self._job.namespace} delete {self._kind.RESOURCE.kind.lower()} "
                    f"{self._job.name}), or start a new run"
                )
            if not is_leaving and self._kind.state_of(existing)[0] != "Failed":
                logger.info("%s continues", self.what)
                return
            logger.info("%s of an earlier try is replaced", self.what)
            if not is_leaving:
                self._delete()
            self._wait_until_gone()

    def adopt(self, existing: Mapping[str, Any] | None) -> bool:
        """Take over a job of an earlier try if it has the same spec; return whether it has."""
        notes = existing["metadata"].get("annotations", {}) if existing else {}
        self._is_ours = notes.get(SPEC_ANNOTATION) == self._job.spec_sha256
        return self._is_ours

    def _create(self) -> bool:
        """Return whether it worked; False if the name is taken."""
        self._is_ours = True  # before the call: a signal may hide the response
        try:
            self._call(
                self._custom.create_namespaced_custom_object,
                body=self._kind.manifest_of(self._job),
                field_validation="Strict",  # else a field that the server lacks is left out
            )
        except ApiException as error:
            self._is_ours = False
            if error.status == 409:
                return False
            raise LaunchError(f"{self.what} is refused: {self._why_refused(error)}") from error
        logger.info("%s is submitted: %d nodes", self.what, self._job.request.nodes)
        return True

    def _why_refused(self, error: ApiException) -> str:
        reason = refusal_of(error)
        if error.status == 404 and "namespace" not in reason:
            missing = self._kind.RESOURCE
            return f"the cluster knows no {missing.kind} ({reason}); install {missing.controller}"
        if error.status == 404:
            return f"{reason}; train_job.namespace has to exist"
        return reason

    def get(self) -> Mapping[str, Any] | None:
        """Return the job as it is on the cluster now."""
        try:
            found: Mapping[str, Any] = self._call(
                self._custom.get_namespaced_custom_object, name=self._job.name
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise
        return found

    def _delete(self, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        try:
            self._call(
                self._custom.delete_namespaced_custom_object,
                name=self._job.name,
                body=V1DeleteOptions(propagation_policy="Foreground"),
                deadline_seconds=deadline_seconds,
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _call(self, method: Callable[..., Any], **options: Any) -> Any:  # noqa: ANN401  # the client has no types
        place = self._kind.RESOURCE
        kind: dict[str, Any] = {"group": place.group, "version": place.version}
        kind |= {"plural": place.plural, "namespace": self._job.namespace}
        return call_api(method, **kind, **options)

    def _wait_until_gone(self) -> None:
        deadline = time.monotonic() + self._pace.removal
        while self.get() is not None:
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"{self.what} does not go away in {self._pace.removal:.0f} s: look for pods "
                    "that don't end and for finalizers"
                )
            time.sleep(min(self._pace.look, 1.0))

    def follow(self, storage: JobStorage) -> None:
        """Wait for success; print the log of the first node.

        Raises:
            LaunchError: It ended otherwise.
        """
        limit = self._job.request.job.start_timeout_minutes
        with JobLog(self._api, self._job):
            began, started, before = time.monotonic(), False, ""
            while True:
                existing = self.get()
                state, message = self._kind.state_of(existing or {})
                created = existing["metadata"]["creationTimestamp"] if existing else ""
                self._pods.look(has_state=bool(state), created=created)
                if existing is None:
                    if _finished(self._job, storage) is None:
                        raise self._failure("was deleted while it trained")
                    return  # its time to live was over
                if state != before:
                    logger.info("%s: %s", self.what, state or "seen by no controller yet")
                    before = state
                if state == "Succeeded":
                    return
                # A master that runs alone waits for its workers.
                is_running = state in ("Running", "Restarting") and self._pods.have_started()
                started = started or is_running
                seconds = time.monotonic() - began
                if problem := self._problem(state, message, seconds):
                    raise self._failure(problem)
                if not started and seconds > limit * 60:
                    raise self._failure(
                        f"did not start in {limit:g} minutes "
                        f"(train_job.start_timeout_minutes){self._why_waiting(state)}",
                        NotStartedError,
                    )
                time.sleep(self._pace.look)

    def _problem(self, state: str, message: str, seconds: float) -> str:
        """Return why the job can't succeed any more, or ""."""
        settings = self._job.request.job
        if state == "Failed":
            return f"failed: {message}{_parameter_of(message)}"
        if self._pods.refusal():
            return "can't work, and another try would not help"
        if self._pods.restarts() > self._job.max_restarts:
            return (
                f"failed again after {self._job.max_restarts} restarts, "
                f"{settings.max_restarts} a node (train_job.max_restarts)"
            )
        if stuck := self._pods.stuck(self._pace.stuck):
            return f"does not start: {stuck}"
        # The operator enforces it; this is for an operator that does not run.
        if seconds > settings.deadline_hours * 3600 + self._pace.removal:
            return f"is not done after {settings.deadline_hours:g} hours (train_job.deadline_hours)"
        return ""

    def _why_waiting(self, state: str) -> str:
        if state == "Suspended":
            queue = self._job.request.job.queue
            return f": the queue {queue!r} (train_job.queue) has not admitted it"
        why = self._pods.why_waiting()
        if not why and not state:
            return f": no controller picked it up; is {self._kind.RESOURCE.controller} running?"
        return f": {why}" if why else ""

    def _failure(self, problem: str, kind: type[LaunchError] = LaunchError) -> LaunchError:
        return kind(f"{self.what} {problem}\n{self._pods.diagnosis()}")


def _parameter_of(message: str) -> str:
    """Return the parameter that a message of the operator is about."""
    if "backoff limit" in message:
        return " (train_job.max_restarts)"
    if "deadline" in message:
        return " (train_job.deadline_hours)"
    return ""
