"""`polarmask predict`: find instances in images and write them as JSON."""

import argparse

from polarmask.commands.arguments import (
    add_finder_arguments,
    finder_of,
    print_counts,
    report_failed,
)
from polarmask.system.argument_types import output_file

HELP = "find instances in images and write them as JSON"
EXAMPLE = "polarmask predict --model runs/first/model --out predictions.json data/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, images and the file to write."""
    parser.add_argument(
        "--out", type=output_file(".json"), required=True, help="JSON file to write, as it goes"
    )
    add_finder_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Write the predictions, and print how many instances each image has."""
    from polarmask.data.find_images import find_images
    from polarmask.inference.image_files import predict_images

    images = find_images(options.images)
    looked = predict_images(
        finder_of(options),
        images,
        options.out,
        min_score=options.score,
        max_pixels=options.max_pixels,
    )
    print_counts(looked)
    print(f"predictions: {options.out}")
    return report_failed(looked)
