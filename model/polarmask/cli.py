"""The `polarmask` command line: builds the parser from `commands` and prints errors in one line."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from polarmask.commands.outcome import Outcome
from polarmask.errors import PolarMaskError
from polarmask.system.command_line import run_command


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
        lambda: _run(arguments), prefix="polarmask", errors=(PolarMaskError, OSError)
    )


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_command(
        lambda: _show(commands()[options.command].run(options)),
        prefix=f"polarmask {options.command}",
        errors=(PolarMaskError, OSError),
    )


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
        train_command,
        visualize_command,
    )

    return {
        "import": import_command,
        "presets": presets_command,
        "inspect": inspect_command,
        "precompute": precompute_command,
        "train": train_command,
        "evaluate": evaluate_command,
        "predict": predict_command,
        "visualize": visualize_command,
        "import-original": import_original_command,
    }


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="polarmask", description="train, evaluate and try PolarMask on COCO-format data"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands().items():
        command.add_arguments(
            subparsers.add_parser(
                name,
                help=command.HELP,
                description=command.HELP,
                epilog=f"example: {command.EXAMPLE}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser
