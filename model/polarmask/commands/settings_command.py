"""`polarmask settings`: every setting of a run with its value and meaning."""

import argparse
from pathlib import Path

from polarmask.commands.outcome import Outcome
from polarmask.config.presets import AUTO, preset_names

HELP = "list every setting of a preset with its value and what it means"
EXAMPLE = "polarmask settings tiny"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the preset, and the data for the one that fits data."""
    parser.add_argument(
        "preset",
        nargs="?",
        metavar="PRESET",
        help=f"one of {', '.join(preset_names())} (default: tiny, which {AUTO} is derived from; "
        f"with --data {AUTO})",
    )
    parser.add_argument("--data", type=Path, help=f"data folder, for {AUTO}")


def run(options: argparse.Namespace) -> Outcome:
    """Print the settings."""
    from polarmask.config.describe import describe_settings
    from polarmask.config.presets import preset

    if options.data is not None and options.preset in (None, AUTO):
        from polarmask.evaluation.auto_preset import preset_for

        config = preset_for(AUTO, options.data)
    else:
        config = preset(options.preset or "tiny")
    print(describe_settings(config))
    return Outcome([])
