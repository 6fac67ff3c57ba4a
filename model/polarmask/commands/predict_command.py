"""`polarmask predict`: find instances in images and write them as JSON."""

import argparse
from pathlib import Path

from polarmask.commands.arguments import add_finder_arguments, finder_of

HELP = "find instances in images and write them as JSON"
EXAMPLE = "polarmask predict --model runs/first/model --out predictions.json data/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, images and the file to write."""
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    add_finder_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Write the predictions, and print how many instances each image has."""
    from polarmask.inference.image_files import find_images, predict_images

    images = find_images(options.images)
    counts = predict_images(finder_of(options), images, options.out, min_score=options.score)
    for path, count in counts.items():
        print(f"{path}: {count} instances")
    print(f"predictions: {options.out}")
