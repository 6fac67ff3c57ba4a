"""`polarmask visualize`: draw what a model finds in images."""

import argparse
from pathlib import Path

from polarmask.commands.arguments import add_finder_arguments, finder_of

HELP = "draw what a model finds in images, and a contact sheet"
EXAMPLE = "polarmask visualize --model runs/first/model --rays --out runs/overlays data/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, images and the folder to write."""
    parser.add_argument("--out", type=Path, required=True, help="folder for the overlays")
    parser.add_argument("--rays", action="store_true", help="draw centres and rays, too")
    add_finder_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Write the overlays, and print how many instances each image has."""
    from polarmask.inference.image_files import find_images, visualize_images

    images = find_images(options.images)
    counts = visualize_images(
        finder_of(options), images, options.out, min_score=options.score, rays=options.rays
    )
    for path, count in counts.items():
        print(f"{path}: {count} instances")
    print(f"overlays: {options.out}, all together: {options.out / 'contact_sheet.jpg'}")
