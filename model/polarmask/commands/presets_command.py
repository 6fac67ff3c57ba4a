"""`polarmask presets`: list the presets and what is published about them."""

import argparse

from polarmask.commands.outcome import Outcome

HELP = "list the known runs and what is published about them"
EXAMPLE = "polarmask presets"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(_options: argparse.Namespace) -> Outcome:
    """Print the table of presets."""
    from polarmask.config.presets import presets_table

    print(presets_table())
    return Outcome([])
