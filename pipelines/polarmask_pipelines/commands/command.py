"""How commands are declared, and the arguments that several commands take."""

import argparse
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from polarmask_pipelines.parameters import pipeline_parameters, write_value

Argument: TypeAlias = tuple[str, dict[str, Any]]
Run: TypeAlias = Callable[[argparse.Namespace], int]
"""Takes the options; returns the exit code."""
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


@dataclass(frozen=True)
class Command:
    """One command."""

    run: Run
    example: str
    arguments: tuple[Argument, ...]

    def add_to(self, commands: Commands) -> None:
        """Add it to a parser, with a copyable example below its help."""
        text = inspect.getdoc(self.run) or ""
        does = text[:1].lower() + text[1:].rstrip(".")
        name = self.run.__name__.rstrip("_")
        parser = commands.add_parser(name, help=does, description=does)
        parser.epilog = f"example: {parser.prog} {self.example}".strip()
        parser.set_defaults(run=self.run)
        for flag, options in self.arguments:
            parser.add_argument(flag, **options)


def command(example: str = "", *arguments: Argument) -> Callable[[Run], Command]:
    """Make a command of a function with the command's name; its docstring is the help.

    Args:
        example: Arguments of the example.
        arguments: In the order of the help.
    """
    return lambda run: Command(run, example, arguments)


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
