"""Command line: python -m polarmask_pipelines run | demo | stop | compile | submit | schedule."""

import argparse
import sys
from collections.abc import Sequence

from polarmask.errors import PolarMaskError
from polarmask.system.command_line import run_command
from polarmask_components.errors import ComponentError
from polarmask_pipelines.errors import PipelineError
from polarmask_serving.errors import ServingError

_PROG = "python -m polarmask_pipelines"


def main(arguments: Sequence[str] | None = None, *, prog: str = _PROG) -> int:
    """Run one command; also the entry point `pipeline` of `polarmask.programs`.

    Returns:
        0; 1 if a step failed; 2 for an error of the user; 3 if the gate stopped the model; 130 if
        it was interrupted.
    """
    return run_command(
        lambda: _run(arguments, prog),
        prefix="error",
        errors=(PolarMaskError, ComponentError, ServingError, PipelineError, OSError),
    )


def _run(arguments: Sequence[str] | None, prog: str) -> int:
    options = build_parser(prog).parse_args(arguments)
    code: int = options.run(options)
    return code


def build_parser(prog: str = _PROG) -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    from polarmask_pipelines.commands import kubeflow, local

    parser = argparse.ArgumentParser(prog=prog, description="compile or run the training pipeline")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add_to in (local.compile, local.run_, local.demo, local.stop, kubeflow.submit):
        add_to(commands)
    schedule = commands.add_parser("schedule", help="run the pipeline on Kubeflow regularly")
    actions = schedule.add_subparsers(required=True, metavar="ACTION")
    for add_to in (kubeflow.apply, kubeflow.list_, kubeflow.delete):
        add_to(actions)
    return parser


if __name__ == "__main__":
    sys.exit(main())
