"""Run the pipeline with KFP's local runner, and report the start and the end of each task.

This is the only module that replaces private functions of KFP: `kfp.local` 2.17 has no hooks, and
its log names neither outputs nor cached results. `pyproject.toml` allows no other minor version,
and `tests/pipelines/test_local_run.py` fails if one of these names moves.

Replaced while a pipeline runs                      without it
    task_executor.execute_single_task                   no line per step, no summary.json
    task_dispatcher.run_single_task_implementation      a cached step looks like one that ran
    enhanced_dag_orchestrator.concurrent                loops run in threads: Ctrl-C does not stop
                                                        them, and their steps compete for all cores
    sys.executable                                      steps fail in a folder with a space in its
                                                        name: KFP does not quote the path
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from kfp import local
from kfp.local import status, task_dispatcher
from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor

from polarmask_pipelines.train_and_deploy import train_and_deploy

_REPEATED = re.compile(r"-\d+$")
"""KFP appends this to a step's name where the pipeline has the step twice, as in two branches."""

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


def step_names() -> set[str]:
    """Return the names of all steps of the pipeline."""
    executors = train_and_deploy.pipeline_spec.deployment_spec["executors"]
    return {_REPEATED.sub("", name.removeprefix("exec-")) for name in executors}


def run_pipeline(
    parameters: Mapping[str, Any],
    *,
    artifacts: Path,
    cache: Path,
    begins: Callable[[str], None],
    ends: Callable[[TaskResult], None],
) -> str:
    """Run the pipeline with subprocesses as steps.

    Args:
        parameters: Of the pipeline.
        artifacts: Folder for the outputs of steps.
        cache: Folder for what later runs reuse.
        begins: Called with the name of a task that starts or is looked up in the cache.
        ends: Called with the result of each task.

    Returns:
        "" on success, otherwise KFP's message, which only names the failed step.
    """
    # For each run, because KFP removes the workspace at the end of a run.
    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(artifacts),
        enable_caching=True,
        cache_root=str(cache),
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    execute, dispatch = _reporting(begins, ends)
    with (
        _replaced(vars(task_executor), "execute_single_task", execute),
        _replaced(vars(task_dispatcher), "run_single_task_implementation", dispatch),
        _replaced(vars(enhanced_dag_orchestrator), "concurrent", _ONE_AT_A_TIME),
        _replaced(vars(sys), "executable", "python3"),
        _replaced(os.environ, "PATH", path),
    ):
        try:
            train_and_deploy(**parameters)
        except RuntimeError as error:  # KFP reports a failed step so
            return str(error)
    return ""


@contextmanager
def _replaced(names: MutableMapping[str, Any], name: str, value: object) -> Iterator[None]:
    before = names[name]
    names[name] = value
    try:
        yield
    finally:
        names[name] = before


def _reporting(
    begins: Callable[[str], None], ends: Callable[[TaskResult], None]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return KFP's two functions that execute a task, each wrapped."""
    execute = task_executor.execute_single_task
    dispatch = task_dispatcher.run_single_task_implementation
    dispatched = 0

    def counting_dispatch(*arguments: object, **named: object) -> object:
        nonlocal dispatched
        dispatched += 1
        return dispatch(*arguments, **named)

    def reporting_execute(task_name: str, task_spec: Any, **named: object) -> object:  # noqa: ANN401  # KFP's type
        dispatched_before, start = dispatched, time.monotonic()
        begins(task_name)
        once = type(task_spec)()
        once.CopyFrom(task_spec)
        once.ClearField("retry_policy")  # which is for lost pods: here an error would be repeated
        outputs, ended = execute(task_name=task_name, task_spec=once, **named)
        succeeded: TaskStatus = "succeeded" if dispatched > dispatched_before else "reused"
        ends(
            TaskResult(
                name=_REPEATED.sub("", task_name),
                status=succeeded if ended == status.Status.SUCCESS else "failed",
                seconds=time.monotonic() - start,
                outputs=outputs,
            )
        )
        return outputs, ended

    return reporting_execute, counting_dispatch


class _InTurn(futures.Executor):
    """Replaces a thread pool: runs each call when it is submitted."""

    def __init__(self, max_workers: int) -> None:
        """Ignore the number of threads."""

    def submit(self, call: Callable[..., Any], /, **named: Any) -> futures.Future[Any]:  # type: ignore[override]  # noqa: ANN401  # any call
        done: futures.Future[Any] = futures.Future()
        done.set_result(call(**named))
        return done


_ONE_AT_A_TIME = SimpleNamespace(
    futures=SimpleNamespace(ThreadPoolExecutor=_InTurn, as_completed=futures.as_completed)
)
