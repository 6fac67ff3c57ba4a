"""Command line: python -m polarmask_pipelines run | demo | stop | compile | submit | schedule."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarmask.errors import PolarMaskError
from polarmask_components.errors import ComponentError
from polarmask_pipelines.commands import add_command, add_kubeflow_commands, add_param
from polarmask_pipelines.errors import PipelineError
from polarmask_pipelines.parameters import read_parameters
from polarmask_serving.errors import ServingError

if TYPE_CHECKING:
    from polarmask_pipelines.local_run import Outcome

COMPILED = Path("pipelines/compiled/train_and_deploy.yaml")
DEMO = Path("runs/demo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if a step failed; 2 for what the user can mend before; 130 if it was interrupted.
    """
    options = build_parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (PolarMaskError, ComponentError, ServingError, PipelineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; all processes of the run ended", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m polarmask_pipelines", description="compile or run the training pipeline"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = add_command(
        commands,
        "compile",
        "write the pipeline as Kubeflow reads it",
        "--param deploy_registry=s3://team/registry --out team.yaml",
    )
    command.add_argument("--out", type=Path, default=COMPILED, help=f"file (default: {COMPILED})")
    add_param(command)
    command.set_defaults(command=_compile)

    command = add_command(
        commands,
        "run",
        "run the pipeline on this machine; the champion's server stays",
        "--out runs/first --preset tiny --param 'train_set=optim.epochs=2 seed=1'",
    )
    command.add_argument(
        "--out", type=Path, required=True, help="run folder; champion and cache lie beside, shared/"
    )
    command.add_argument("--preset", default="tiny", help="name of a known run (default: tiny)")
    add_param(command)
    command.set_defaults(command=_run)

    command = add_command(commands, "demo", f"run preset tiny into {DEMO}; KEEP=1 keeps the server")
    command.set_defaults(command=_demo)

    command = add_command(commands, "stop", "end the server that a run left", "runs/shared/server")
    command.add_argument("server", type=Path, help="folder of the server")
    command.set_defaults(command=_stop)

    add_kubeflow_commands(commands)
    return parser


def _compile(options: argparse.Namespace) -> int:
    from polarmask.system.files import write_text
    from polarmask_pipelines.package import compile_package

    write_text(options.out, compile_package(read_parameters(options.param)).text)
    print(f"written: {options.out}")
    return 0


def _run(options: argparse.Namespace) -> int:
    parameters = {"train_preset": options.preset, **read_parameters(options.param)}
    return _run_and_tell(options.out, parameters, keep=True)


def _demo(_: argparse.Namespace) -> int:
    return _run_and_tell(DEMO, {"train_preset": "tiny"}, keep=os.environ.get("KEEP") == "1")


def _stop(options: argparse.Namespace) -> int:
    from polarmask_components.deploy.local_server import is_serving, stop_server

    was_serving = is_serving(options.server)
    stop_server(options.server)
    print("stopped" if was_serving else f"no server runs in {options.server}")
    return 0


def _run_and_tell(out: Path, parameters: dict[str, Any], *, keep: bool) -> int:
    """Run, print what came of it, and end the server unless it is to be kept."""
    from polarmask_components.deploy.local_server import stop_server
    from polarmask_components.run.data_version import has_uncommitted_pointer
    from polarmask_pipelines.local_run import LOG, run

    parameters = {"data_repository": str(Path.cwd()), **parameters}
    if has_uncommitted_pointer(parameters["data_repository"]):
        print("note: data.dvc has uncommitted changes; runs take what is committed\n")
    outcome = run(out, parameters)
    if not outcome.succeeded and not keep:
        stop_server(outcome.server)
    if not outcome.succeeded:
        print(f"\nfailed: {outcome.error}\nall it said: {_near(out / LOG)}", file=sys.stderr)
        return 1
    _tell(outcome, out)
    server = outcome.server
    if outcome.served and keep:
        print(f"stop it: python -m polarmask_pipelines stop {shlex.quote(_near(server))}")
    elif outcome.served:
        stop_server(server)
        print("server stopped; KEEP=1 keeps it running")
    return 0


def _tell(outcome: "Outcome", out: Path) -> None:
    """Print what came of a run."""
    from polarmask_pipelines.results import SUMMARY, shorten

    summary = outcome.summary
    if summary.mask_ap is None:
        print("\nnothing changed, so nothing was trained; the line of check-changed says more")
        return
    if summary.nothing_changed:
        print("\nnothing changed: data, code and parameters are those of an earlier run")
    print(f"\nmask AP  {summary.mask_ap:.3f}, AP50 {summary.mask_ap50:.3f}")
    print(f"reports  {', '.join(map(_near, sorted((out / 'reports').iterdir())))}")
    print(f"overlay  {_near(summary.overlay)}")
    print(f"summary  {_near(out / SUMMARY)}")
    print(f"took     {summary.seconds:.0f} s")
    if outcome.served is None:
        print("\nno model was deployed yet, so no server runs")
        return
    print(f"\n$ curl -X POST -T {shlex.quote(_near(summary.sample))} {outcome.served.url}")
    print(json.dumps(shorten(outcome.served.answer)))


def _near(path: Path | str | None) -> str:
    """Return a path as seen from here, if it lies below."""
    if path is None:
        return "none"
    return os.path.relpath(path) if Path(path).resolve().is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
