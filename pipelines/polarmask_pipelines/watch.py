"""See each task of a local run begin and end.

Kubeflow's local runner has no hooks, and its log names neither outputs nor reused results. So the
two functions that all its orchestrators call for a task are wrapped while a run lasts. Its loops
would run in threads, which nothing interrupts, on cores that each step takes all of; here they run
in turn.
"""

import re
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal, Protocol

from kfp.local import status, task_dispatcher
from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor

_SECOND = re.compile(r"-\d+$")
"""What KFP appends to a step's name where the pipeline has it twice, as in two branches."""

TaskStatus = Literal["succeeded", "reused", "failed", "skipped"]


@dataclass(frozen=True)
class TaskResult:
    """How a task ended."""

    name: str
    """As in the pipeline: lower case with dashes."""
    status: TaskStatus
    seconds: float
    outputs: dict[str, Any]
    """Parameters as Python values, artifacts as KFP's objects with `.path` and `.metadata`."""


class Observer(Protocol):
    """Whoever wants to know."""

    def task_begins(self, name: str) -> None:
        """Hear that a task is about to run or to be reused."""

    def task_ends(self, result: TaskResult) -> None:
        """Hear how it ended."""


class _InTurn:
    """Stands where the runner has a pool of threads; does at once what is submitted."""

    def __init__(self, max_workers: int) -> None:
        """Take the number of threads, which is of no matter."""

    def submit(self, call: Callable[..., object], **named: object) -> futures.Future[object]:
        done: futures.Future[object] = futures.Future()
        done.set_result(call(**named))
        return done

    def shutdown(self, *, wait: bool) -> None:
        """Have nothing to wait for."""


@contextmanager
def watched(observer: Observer) -> Iterator[None]:
    """Tell the observer about every task that runs inside the block."""
    execute = task_executor.execute_single_task
    dispatch = task_dispatcher.run_single_task_implementation
    runs = 0

    def counting_dispatch(*arguments: object, **named: object) -> object:
        nonlocal runs
        runs += 1
        return dispatch(*arguments, **named)

    def telling_execute(task_name: str, *arguments: object, **named: object) -> object:
        runs_before, began = runs, time.monotonic()
        observer.task_begins(task_name)
        outputs, ended = execute(task_name, *arguments, **named)
        succeeded: TaskStatus = "succeeded" if runs > runs_before else "reused"
        observer.task_ends(
            TaskResult(
                name=_SECOND.sub("", task_name),
                status=succeeded if ended == status.Status.SUCCESS else "failed",
                seconds=time.monotonic() - began,
                outputs=outputs,
            )
        )
        return outputs, ended

    loops = enhanced_dag_orchestrator.concurrent
    enhanced_dag_orchestrator.concurrent = SimpleNamespace(
        futures=SimpleNamespace(ThreadPoolExecutor=_InTurn, as_completed=futures.as_completed)
    )
    task_executor.execute_single_task = telling_execute
    task_dispatcher.run_single_task_implementation = counting_dispatch
    try:
        yield
    finally:
        enhanced_dag_orchestrator.concurrent = loops
        task_executor.execute_single_task = execute
        task_dispatcher.run_single_task_implementation = dispatch
