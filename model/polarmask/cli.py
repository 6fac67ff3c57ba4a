"""The `polarmask` command line: builds the parser from `commands` and prints errors in one line.

Commands of other areas are entry points of the group `polarmask.programs`: the model area imports
neither servers nor pipelines. They get their arguments as they are.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points, version
from typing import Protocol

from polarmask.commands.outcome import Outcome
from polarmask.errors import DataError, PolarMaskError
from polarmask.system.command_line import run_command

_PACKAGE = "polarmask-k8s"
_PROGRAMS = {
    "serve": "serve a model on this machine, with a page to try it (extra `serving`)",
    "pipeline": "run the whole pipeline here or on Kubeflow (extra `pipelines` and others)",
    "models": "list, compare and roll back the models of a registry (extra `components`)",
}
"""Entry points of `polarmask.programs`: main(arguments, prog) -> exit code."""
_FIRST_STEPS = """\
first steps, from label masks to counts:
  polarmask import my-images --out data
  polarmask train --data data --out runs/first
  polarmask predict --model runs/first --save csv,overlay --out found data/images
"""


class Command(Protocol):
    """What a module of `commands` has."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the command's arguments."""

    def run(self, options: argparse.Namespace, /) -> Outcome:
        """Run the command with parsed arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0; 1 if `predict` or `visualize` left images out; 2 for errors that the user
        can fix; 128 + n when signal n stopped it.
    """
    return run_command(
        lambda: _run(sys.argv[1:] if arguments is None else arguments),
        prefix="polarmask",
        errors=(PolarMaskError, OSError),
    )


def _run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in _PROGRAMS:
        return _run_program(arguments[0], arguments[1:])
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        print(f"polarmask {version(_PACKAGE)}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    _start_logging(options)
    return run_command(
        lambda: _show(commands()[options.command].run(options)),
        prefix=f"polarmask {options.command}",
        errors=(PolarMaskError, OSError),
    )


def _run_program(name: str, arguments: Sequence[str]) -> int:
    for program in entry_points(group="polarmask.programs", name=name):
        code: int = program.load()(arguments, prog=f"polarmask {name}")
        return code
    raise DataError(f"{name} is not installed; install this project again")


def _start_logging(options: argparse.Namespace) -> None:
    text = "%(asctime)s %(name)s: %(message)s" if options.verbose else "%(message)s"
    logging.basicConfig(level=logging.INFO, format=text, stream=sys.stderr)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.getLogger("polarmask").setLevel(logging.WARNING if options.quiet else level)


def _show(outcome: Outcome) -> int:
    """Print what was left out of the data that a command used; return the exit code."""
    for summary in outcome.data:
        print(summary.describe())
    return outcome.exit_code


def commands() -> Mapping[str, Command]:
    """Return the commands by name; they load here, where an extra that is missing gets its line."""
    from polarmask.commands import (
        evaluate_command,
        import_command,
        import_original_command,
        inspect_command,
        precompute_command,
        predict_command,
        presets_command,
        settings_command,
        train_command,
        visualize_command,
    )

    return {
        "import": import_command,
        "inspect": inspect_command,
        "train": train_command,
        "evaluate": evaluate_command,
        "predict": predict_command,
        "visualize": visualize_command,
        "presets": presets_command,
        "settings": settings_command,
        "precompute": precompute_command,
        "import-original": import_original_command,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="polarmask",
        description="train, evaluate and try PolarMask on your images",
        epilog=_FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in commands().items():
        subparser = subparsers.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=f"example: {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
        _add_logging_arguments(subparser)
    for name, text in _PROGRAMS.items():
        subparsers.add_parser(name, help=text, add_help=False)
    return parser


def _add_logging_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print results and warnings, no progress"
    )
    group.add_argument(
        "-v", "--verbose", action="store_true", help="print details, with time and module"
    )
