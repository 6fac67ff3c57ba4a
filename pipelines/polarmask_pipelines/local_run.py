"""Run the pipeline on this machine: processes as steps, a local server, summary.json."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from polarmask.errors import ConfigError
from polarmask_components.deploy.local_places import local_places
from polarmask_components.deploy.local_target import ask_champion, is_serving, stop_server
from polarmask_components.deploy.target import Deployment
from polarmask_components.errors import ComponentError
from polarmask_components.registry.registry import open_registry
from polarmask_components.signals import on_stop_signal
from polarmask_components.training.run_lock import run_lock
from polarmask_pipelines.console import console
from polarmask_pipelines.local_runner import run_pipeline, step_names
from polarmask_pipelines.parameters import pipeline_parameters
from polarmask_pipelines.summary import Summary, deployed_in, summarize
from polarmask_serving.errors import ServingError

LOG = "run.log"
LOCK = ".lock"
_SECONDS_TO_END = 45
"""Training asks its workers to end, and kills them after 30 s."""


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    summary: Summary
    error: str
    """Of the step that failed, or "" if the run succeeded."""
    server: Path
    """Folder of the server."""
    url: str
    """Where the champion answers after the run; "" if nothing was deployed yet."""


def run(out: Path, parameters: Mapping[str, Any]) -> Outcome:
    """Run all steps, print a line for each, and write summary.json.

    Args:
        out: Run folder.
        parameters: Of the pipeline. Runs beside each other share the champion registry, the server
            and reusable results, in the folder `shared` beside `out`, unless others are named.

    Raises:
        ConfigError: `deploy_target` is a cluster.
        LaunchError: Another run uses the folder.
        KeyboardInterrupt: On SIGINT, SIGTERM and SIGHUP, after all processes of the run ended.
    """
    out = out.resolve()
    places = local_places(out.parent)
    parameters = {
        **{name: each.default for name, each in pipeline_parameters().items()},
        "deploy_registry": str(places.registry),
        "deploy_target": str(places.server),
        "train_on": "here",
        **parameters,
    }
    if "://" in parameters["deploy_target"]:
        raise ConfigError(
            f"deploy_target is {parameters['deploy_target']}: a run on this machine serves on this "
            "machine, from a folder; take `submit` to run and serve in a cluster"
        )
    target = Path(parameters["deploy_target"])
    log = console(out / LOG, webhook=parameters["notify_webhook"])
    with run_lock(out / LOCK), log as screen, _no_process_stays(target):
        start = time.monotonic()
        failure = run_pipeline(
            parameters,
            artifacts=out / "artifacts",
            cache=places.cache,
            begins=screen.task_begins,
            ends=screen.task_ends,
        )
        seconds = time.monotonic() - start
        error = failure and (screen.error or failure)
        summary = summarize(screen.results, step_names(), seconds=seconds, out=out)
        served = deployed_in(screen.results)
        if not error and served is None and summary.sample:
            try:
                served = _ask_champion(parameters, Path(summary.sample))
            except (ServingError, ComponentError, OSError) as problem:
                error = f"the champion does not answer: {problem}"
        if served:
            summary.champion, summary.server_answer = served.version, served.answer
        summary.write(out)
    return Outcome(summary, error, target, served.url if served else "")


def _ask_champion(parameters: Mapping[str, Any], sample: Path) -> Deployment | None:
    return ask_champion(
        Path(parameters["deploy_target"]),
        name=parameters["deploy_model_name"],
        registry=open_registry(parameters["deploy_registry"]),
        image=sample.read_bytes(),
    )


@contextmanager
def _no_process_stays(target: Path) -> Iterator[None]:
    """Raise KeyboardInterrupt on signals to end; end what an interrupted block started."""
    served_before = is_serving(target)
    with on_stop_signal(signal.default_int_handler):
        try:
            yield
        except BaseException as error:  # a signal, too, leaves no process behind
            _end(psutil.Process().children(recursive=True))
            if not served_before:
                stop_server(target)
            if isinstance(error, KeyboardInterrupt):
                error.args = ("all processes of the run ended",)
            raise


def _end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that do not end in time."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
