"""`polarmask import-original`: make a model folder from a checkpoint of the paper's code."""

import argparse
from pathlib import Path

from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import output_folder

HELP = "make a model folder from a checkpoint of the paper's code"
EXAMPLE = "polarmask import-original polarmask_r50.pth --out runs/released"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the checkpoint, what is known about it, and the model folder."""
    parser.add_argument("checkpoint", type=Path, help="file that the paper's code wrote")
    parser.add_argument("--out", type=output_folder, required=True, help="model folder to write")
    parser.add_argument(
        "--preset", metavar="PRESET", help="preset of its training (default: 1x of its network)"
    )
    parser.add_argument(
        "--ray-order",
        choices=["auto", "new", "old"],
        default="auto",
        help="old before 2019-11-12; auto compares both on --data, or else reads the names "
        "in the checkpoint (default: auto)",
    )
    parser.add_argument(
        "--data", type=Path, help="COCO folder for categories and ray order (default: COCO's 80)"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Import the checkpoint, and print its preset and ray order."""
    from polarmask.model_sources.import_original import import_original

    card = import_original(
        options.checkpoint,
        options.out,
        data=options.data,
        preset_name=options.preset,
        ray_order=None if options.ray_order == "auto" else options.ray_order,
    )
    print(f"model: {options.out} ({card.config.name}, {card.provenance['ray_order']} ray order)")
    return Outcome([])
