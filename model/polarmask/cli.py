"""The `polarmask` command line: builds the parser from `commands` and prints errors in one line."""

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Protocol

from polarmask.commands import (
    evaluate_command,
    import_original_command,
    inspect_command,
    precompute_command,
    predict_command,
    presets_command,
    train_command,
    visualize_command,
)
from polarmask.errors import PolarMaskError, TrainingStopped


class Command(Protocol):
    """What a module of `commands` has."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the command's arguments."""

    def run(self, options: argparse.Namespace, /) -> None:
        """Run the command with parsed arguments."""


COMMANDS: dict[str, Command] = {
    "presets": presets_command,
    "inspect": inspect_command,
    "precompute": precompute_command,
    "train": train_command,
    "evaluate": evaluate_command,
    "predict": predict_command,
    "visualize": visualize_command,
    "import-original": import_original_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 2 for errors that the user can fix, or 128 + n when signal n stopped the
        training.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        COMMANDS[options.command].run(options)
    except (PolarMaskError, OSError) as error:
        print(f"polarmask {options.command}: {error}", file=sys.stderr)
        return 128 + error.signal_number if isinstance(error, TrainingStopped) else 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="polarmask", description="train, evaluate and try PolarMask on COCO-format data"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(
                name,
                help=command.HELP,
                description=command.HELP,
                epilog=f"example: {command.EXAMPLE}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser
