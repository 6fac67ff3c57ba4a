"""Run the pipeline on this machine, with Kubeflow's local runner and processes as steps."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from kfp import local

from polarmask.errors import ConfigError
from polarmask_components.deploy.local_server import Deployment, is_serving, stop_server
from polarmask_components.errors import ComponentError
from polarmask_components.registry.registry import open_registry
from polarmask_components.run.signals import when_asked_to_end
from polarmask_components.training.lifeline import lifeline
from polarmask_pipelines.console import Console, console
from polarmask_pipelines.results import Summary, deployed_in, summarize
from polarmask_pipelines.train_and_deploy import train_and_deploy
from polarmask_pipelines.watch import watched
from polarmask_serving.errors import ServingError

LOG = "run.log"
LOCK = ".lock"
STEPS = (
    "preflight",
    "resolve-data",
    "check-changed",
    "ingest-coco",
    "check-champion",
    "precompute-part",
    "precompute-rays",
    "train",
    "evaluate",
    "evaluate-champion",
    "gate-model",
    "measure-engines",
    "deploy-torchserve",
    "remember-run",
    "notify",
)
_SECONDS_TO_END = 45
"""Training asks its workers to end, and kills them after 30 s."""


@dataclass(frozen=True)
class Outcome:
    """How a run went."""

    succeeded: bool
    summary: Summary
    error: str
    """Of the step that failed, or ""."""
    server: Path
    """Folder of the server."""
    served: Deployment | None
    """The champion that answers after the run."""


def shared_folder(out: Path) -> Path:
    """Return where runs beside each other keep champion, server and reusable results."""
    return out.resolve().parent / "shared"


def run(out: Path, parameters: Mapping[str, Any]) -> Outcome:
    """Run all steps, print a line for each, and write summary.json.

    Args:
        out: Run folder.
        parameters: Of the pipeline. Registry and server lie in `shared_folder(out)` unless named.

    Raises:
        ConfigError: The model is to be served elsewhere.
        LaunchError: Another run is going on in the folder.
        KeyboardInterrupt: On SIGINT, SIGTERM and SIGHUP, after all processes of the run ended.
    """
    out = out.resolve()
    shared = shared_folder(out)
    parameters = {
        "deploy_model_name": "polarmask",
        "deploy_registry": str(shared / "registry"),
        "deploy_target": str(shared / "server"),
        "train_on": "here",
        **parameters,
    }
    if "://" in parameters["deploy_target"]:
        raise ConfigError(
            f"deploy_target is {parameters['deploy_target']}: a run on this machine serves on this "
            "machine, from a folder; take `submit` to run and serve in a cluster"
        )
    target = Path(parameters["deploy_target"])
    with lifeline(out / LOCK), console(out / LOG) as person, _no_process_stays(target):
        began = time.monotonic()
        succeeded = _run_pipeline(out, shared / "cache", parameters, person)
        seconds = time.monotonic() - began
        summary = summarize(person.results, STEPS, seconds=seconds, out=out)
        served = deployed_in(person.results)
        if succeeded and served is None and summary.sample:
            try:
                served = _ask(parameters, Path(summary.sample))
            except (ServingError, ComponentError, OSError) as error:
                succeeded, person.error = False, f"the champion does not answer: {error}"
        if served:
            summary.champion, summary.server_answer = served.version, served.answer
        summary.write(out)
    return Outcome(succeeded, summary, person.error, target, served)


def _ask(parameters: Mapping[str, Any], sample: Path) -> Deployment | None:
    # Brings torch with it, which no other part of this process needs.
    from polarmask_components.deploy.deployment import ask_champion

    return ask_champion(
        Path(parameters["deploy_target"]),
        name=parameters["deploy_model_name"],
        registry=open_registry(parameters["deploy_registry"]),
        image=sample.read_bytes(),
    )


def _run_pipeline(out: Path, cache: Path, parameters: Mapping[str, Any], person: Console) -> bool:
    with _steps_find_python(), watched(person):
        # Anew for each run: the workspace of the last one is gone.
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(out / "artifacts"),
            enable_caching=True,
            cache_root=str(cache),
        )
        try:
            train_and_deploy(**parameters)
        except RuntimeError as error:
            # So the runner says that a step failed; which, and why, the console knows.
            person.error = person.error or str(error)
            return False
    return True


@contextmanager
def _steps_find_python() -> Iterator[None]:
    """Let steps find our Python on PATH.

    The runner writes the path of the executable into a shell command without quotes, which breaks
    in a folder with a space in its name.
    """
    executable, path = sys.executable, os.environ["PATH"]
    sys.executable = "python3"
    os.environ["PATH"] = f"{Path(executable).parent}{os.pathsep}{path}"
    try:
        yield
    finally:
        sys.executable, os.environ["PATH"] = executable, path


@contextmanager
def _no_process_stays(target: Path) -> Iterator[None]:
    """Turn signals that ask to end into KeyboardInterrupt; end what a cut-off block started."""
    served_before = is_serving(target)
    with when_asked_to_end(signal.default_int_handler):
        try:
            yield
        except BaseException:
            _end(psutil.Process().children(recursive=True))
            if not served_before:
                stop_server(target)
            raise


def _end(processes: list[psutil.Process]) -> None:
    """End processes: asked first, then killed."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=_SECONDS_TO_END)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
