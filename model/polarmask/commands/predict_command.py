"""`polarmask predict`: find instances in images and write them as files."""

import argparse
from pathlib import Path

from polarmask.commands.arguments import (
    add_finder_arguments,
    finder_of,
    outcome_of,
    print_counts,
)
from polarmask.commands.outcome import Outcome
from polarmask.errors import DataError
from polarmask.system.argument_types import output_file, output_folder

HELP = "find instances in images and write them as files"
EXAMPLE = "polarmask predict --model runs/first --save labels,overlay,csv --out found data/images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, images and what to write."""
    parser.add_argument(
        "--out", required=True, help="JSON file to write, or with --save a folder; grows as it goes"
    )
    parser.add_argument(
        "--save",
        metavar="KINDS",
        help="of labels (label images), overlay, csv (objects and counts), geojson, roi (ImageJ), "
        "coco (results JSON), with commas between",
    )
    add_finder_arguments(parser)


def run(options: argparse.Namespace) -> Outcome:
    """Write the predictions, and print how many instances each image has."""
    from polarmask.data.find_images import find_images
    from polarmask.inference.image_files import predict_images
    from polarmask.inference.saved_files import save_images

    out = _checked(options.out, folder=bool(options.save))
    images = find_images(options.images)
    finder = finder_of(options)
    limits = {"min_score": options.score, "max_pixels": options.max_pixels}
    if options.save:
        looked = save_images(finder, images, out, options.save.split(","), **limits)
    else:
        looked = predict_images(finder, images, out, **limits)
    print_counts(looked)
    total = sum(looked.counts.values())
    failed = f", {len(looked.failed)} failed" if looked.failed else ""
    least = "" if looked.min_score is None else f" with scores from {looked.min_score:.2f}"
    print(f"{len(looked.counts):,} images, {total:,} instances{least}{failed}: {out}")
    return outcome_of(looked)


def _checked(text: str, *, folder: bool) -> Path:
    try:
        return output_folder(text) if folder else output_file(".json")(text)
    except argparse.ArgumentTypeError as error:
        raise DataError(f"--out {text}: {error}") from error
