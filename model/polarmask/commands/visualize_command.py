"""`polarmask visualize`: draw what a model finds in images."""

import argparse

from polarmask.commands.arguments import (
    add_finder_arguments,
    finder_of,
    outcome_of,
    print_counts,
)
from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import output_folder

HELP = "draw what a model finds in images, and a contact sheet"
EXAMPLE = "polarmask visualize --model runs/first/model --rays --out runs/overlays data/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, images and the folder to write."""
    parser.add_argument("--out", type=output_folder, required=True, help="folder for the overlays")
    parser.add_argument("--rays", action="store_true", help="draw centres and rays, too")
    add_finder_arguments(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Write the overlays, and print how many instances each image has."""
    from polarmask.data.find_images import find_images
    from polarmask.inference.image_files import visualize_images

    images = find_images(options.images)
    finder = finder_of(options)
    looked = visualize_images(
        finder,
        images,
        options.out,
        min_score=options.score,
        max_pixels=options.max_pixels,
        rays=options.rays,
    )
    print_counts(looked)
    if looked.counts:
        print(f"overlays: {options.out}, all together: {options.out / 'contact_sheet.jpg'}")
    return outcome_of(looked)
