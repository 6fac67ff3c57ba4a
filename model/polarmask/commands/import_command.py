"""`polarmask import`: turn annotations of other programs into a COCO folder."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from polarmask.commands.outcome import Outcome
from polarmask.errors import DataError

if TYPE_CHECKING:
    from polarmask.importing.source import Source

HELP = "turn masks, YOLO, labelme or COCO annotations into a COCO folder"
EXAMPLE = "polarmask import my-images --out data --val 0.2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the source, the folder to write, and how to split."""
    parser.add_argument(
        "source", type=Path, nargs="?", metavar="FOLDER", help="images and their annotations"
    )
    parser.add_argument("--out", type=Path, required=True, help="data folder to write; must be new")
    parser.add_argument(
        "--format",
        choices=["auto", "masks", "yolo", "labelme", "coco"],
        default="auto",
        help="of the annotations (default: found by looking)",
    )
    parser.add_argument("--masks", type=Path, help="folder of masks with the images' names")
    parser.add_argument(
        "--category", default="object", help="of objects in masks (default: object)"
    )
    parser.add_argument(
        "--train", nargs=2, type=Path, metavar=("JSON", "FOLDER"), help="a COCO file and its images"
    )
    parser.add_argument(
        "--val",
        nargs="+",
        metavar="VAL",
        help="a COCO file and its images, or the share of images to evaluate on "
        "(default: as the source says, or 0.2)",
    )
    parser.add_argument(
        "--copy", action="store_true", help="copy image files (default: link to them)"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Import, read the result back, and print what it holds and the next command."""
    from polarmask.data.coco import load_coco
    from polarmask.data.summary import describe_problems
    from polarmask.importing.write import SPLITS, write_coco

    source, val_share = _source_of(options)
    choice = write_coco(source, options.out, val_share=val_share, copy=options.copy)
    print(f"{source.kind}; split: {choice.reason}")
    if source.problems:
        print(f"not imported:\n{describe_problems(source.problems)}")
    print(f"next: polarmask train --data {options.out} --out runs/first")
    return Outcome([load_coco(options.out, split).summary for split in SPLITS])


def _source_of(options: argparse.Namespace) -> "tuple[Source, float | None]":
    from polarmask.importing.coco_export import load_coco_file, read_coco
    from polarmask.importing.detect import read_source

    val = options.val or []
    val_share = _share(val[0]) if len(val) == 1 else None
    pairs = {"train": options.train, "val": [Path(each) for each in val] if len(val) > 1 else None}
    if len(val) > 2:
        raise DataError(f"--val takes a share, or JSON FOLDER; not {len(val)} values")
    files = [(pair[0], pair[1], split) for split, pair in pairs.items() if pair]
    if bool(files) == bool(options.source):
        raise DataError("give a folder, or --train JSON FOLDER and --val JSON FOLDER")
    if files:
        return read_coco([load_coco_file(*each) for each in files]), val_share
    source = read_source(
        options.source, kind=options.format, category=options.category, masks=options.masks
    )
    return source, val_share


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise DataError(f"--val {text}: give a share above 0 and below 1, or JSON FOLDER")
    return value
