"""How commands are declared, and the arguments that several commands take."""

import argparse
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from polarmask_pipelines.parameters import pipeline_parameters, write_value

Argument: TypeAlias = tuple[str, dict[str, Any]]
Run: TypeAlias = Callable[[argparse.Namespace], int]
"""Takes the options; returns the exit code."""
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

STOPPED_BY_GATE = 3
"""Exit code of a run without an error that deployed nothing, because the gate stopped its model."""

CANCELED_RUN = 4
"""Exit code of a run that somebody ended."""


def emphasized(text: str) -> str:
    """Return a text in bold, if people read it on a terminal."""
    is_plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if is_plain else f"\x1b[1m{text}\x1b[0m"


def command(example: str = "", *arguments: Argument) -> Callable[[Run], Callable[[Commands], None]]:
    """Make a function that adds a command to a parser.

    The decorated function runs the command. Its name is that of the command, its docstring the
    help.

    Args:
        example: Arguments of the example below the help.
        arguments: In the order of the help.
    """

    def declare(run: Run) -> Callable[[Commands], None]:
        def add_to(commands: Commands) -> None:
            text = inspect.getdoc(run) or ""
            does = text[:1].lower() + text[1:].rstrip(".")
            parser = commands.add_parser(run.__name__.rstrip("_"), help=does, description=does)
            parser.epilog = f"example: {parser.prog} {example}".strip()
            parser.set_defaults(run=run)
            for flag, options in arguments:
                parser.add_argument(flag, **options)

        return add_to

    return declare


def argument(flag: str, help: str, **options: Any) -> Argument:  # noqa: ANN401  # as argparse
    """Return an argument; for the options see `argparse.ArgumentParser.add_argument`."""
    return flag, {"help": help, "default": "", **options}


def switch(flag: str, help: str) -> Argument:
    """Return an argument without a value: True where it is given."""
    return flag, {"help": help, "action": "store_true"}


_DEFAULTS = ", ".join(
    f"{each.name}={write_value(each.default)}" for each in pipeline_parameters().values()
)
PARAM = argument(
    "--param",
    f"parameter of the pipeline; may be repeated. Names and defaults: {_DEFAULTS}",
    action="append",
    default=[],
    metavar="NAME=VALUE",
)
DRY_RUN = switch("--dry-run", "print what would be done, and change nothing")
