"""Commands for this machine: compile, run, demo, stop."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from polarmask.report.index import INDEX
from polarmask.system.files import write_text
from polarmask_components.deploy.local_target import is_serving, stop_server
from polarmask_components.provenance.data_version import uncommitted_data
from polarmask_pipelines.commands.command import (
    PARAM,
    STOPPED_BY_GATE,
    argument,
    command,
    emphasized,
)
from polarmask_pipelines.local_run import LOG, run
from polarmask_pipelines.package import compile_package
from polarmask_pipelines.parameters import check_parameters, read_parameters
from polarmask_pipelines.summary import SUMMARY, Summary

_COMPILED = Path("pipelines/compiled/train_and_deploy.yaml")
_DEMO = Path("runs/demo")
_PRESET = "tiny"


@command(
    "--param deploy_registry=s3://team/registry --out team.yaml",
    argument("--out", f"file (default: {_COMPILED})", type=Path, default=_COMPILED),
    PARAM,
)
def compile(options: argparse.Namespace) -> int:
    """Write the pipeline as Kubeflow reads it."""
    parameters = read_parameters(options.param)
    check_parameters(parameters)
    write_text(options.out, compile_package(parameters).text)
    print(f"written: {options.out}")
    return 0


@command(
    "--out runs/first --preset tiny --param 'train_set=optim.epochs=2 seed=1'",
    argument("--out", "run folder; runs share the folder shared/ beside", type=Path, required=True),
    argument("--preset", f"value of train_preset (default: {_PRESET})", default=_PRESET),
    PARAM,
)
def run_(options: argparse.Namespace) -> int:
    """Run the pipeline on this machine and keep the champion's server running."""
    parameters = {"train_preset": options.preset, **read_parameters(options.param)}
    return _run_and_print(options.out, parameters, keep=True)


@command()
def demo(_: argparse.Namespace) -> int:
    """Run preset tiny into runs/demo; KEEP=1 keeps the server running."""
    return _run_and_print(_DEMO, {"train_preset": _PRESET}, keep=os.environ.get("KEEP") == "1")


@command("runs/shared/server", argument("server", "folder of the server", type=Path))
def stop(options: argparse.Namespace) -> int:
    """Stop the server that a run left."""
    was_serving = is_serving(options.server)
    stop_server(options.server)
    print("stopped" if was_serving else f"no server runs in {options.server}")
    return 0


def _run_and_print(out: Path, parameters: dict[str, Any], *, keep: bool) -> int:
    """Run, print the result, and stop the server unless it is to be kept."""
    parameters = {"data_repository": str(Path.cwd()), **parameters}
    if change := uncommitted_data(parameters["data_repository"]):
        print(f"note: {change}; runs take what is committed\n")
    outcome = run(out, parameters)
    if outcome.error:
        if not keep:
            stop_server(outcome.server)
        print(f"\nfailed: {outcome.error}\nwhole log: {_shown(out / LOG)}", file=sys.stderr)
        return 1
    _print_summary(outcome.summary, out, outcome.url)
    if outcome.url and keep:
        print(f"stop it: python -m polarmask_pipelines stop {shlex.quote(_shown(outcome.server))}")
    elif outcome.url:
        stop_server(outcome.server)
        print("server stopped; KEEP=1 keeps it running")
    return STOPPED_BY_GATE if outcome.summary.is_stopped else 0


def _print_summary(summary: Summary, out: Path, url: str) -> None:
    if summary.gate is None:
        print("\nnothing changed, so nothing was trained; check-changed above has the reason")
        return
    if summary.is_stopped:
        print(f"\n{emphasized('STOPPED by the gate')}: {summary.gate['reason']}")
        print("no model was deployed")
    if summary.nothing_changed:
        print("\nnothing changed: data, code and parameters are those of an earlier run")
    if summary.mask_ap is not None:
        print(f"\nmask AP  {summary.mask_ap:.3f}, AP50 {summary.mask_ap50:.3f}")
    print(f"pages    {_shown(out / INDEX)}")
    print(f"overlay  {_shown(summary.overlay)}")
    print(f"summary  {_shown(out / SUMMARY)}")
    print(f"took     {summary.seconds:.0f} s")
    if not url:
        print("\nno model was deployed yet, so no server runs")
        return
    if summary.is_stopped:
        print(f"\nthe champion, version {summary.champion}, still answers at {url}")
        return
    print(f"\n$ curl -X POST -T {shlex.quote(_shown(summary.sample))} {url}")
    print(json.dumps(shorten(summary.server_answer)))


def _shown(path: object) -> str:
    """Return a path relative to the current folder, if it is below it."""
    full = Path(str(path)).resolve()
    return os.path.relpath(full) if full.is_relative_to(Path.cwd()) else str(path)


def shorten(value: object) -> object:
    """Cut long lists of an answer, for printing."""
    if isinstance(value, dict):
        return {key: shorten(item) for key, item in value.items()}
    if isinstance(value, list) and len(value) > 4:
        return [*map(shorten, value[:2]), f"... {len(value) - 2} more"]
    if isinstance(value, list):
        return [shorten(item) for item in value]
    return value
