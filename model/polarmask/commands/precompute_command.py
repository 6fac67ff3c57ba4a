"""`polarmask precompute`: make the label store, whole or shard by shard."""

import argparse
from pathlib import Path

from polarmask.commands.arguments import (
    add_config_arguments,
    add_data_argument,
    add_strict_argument,
    config_of,
)
from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import at_least, output_folder

HELP = "check the data and make its ray labels; resumes where it was interrupted"
EXAMPLE = "polarmask precompute --data data --out runs/labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add data, config, label store and processes."""
    add_data_argument(parser)
    parser.add_argument("--out", type=output_folder, required=True, help="label store folder")
    add_config_arguments(parser)
    add_strict_argument(parser)
    parser.add_argument(
        "--workers", type=at_least(0), default=0, help="processes (default: this one)"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="cuda spreads the workers over this machine's GPUs (default: cpu)",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="make every N-th shard, from the I-th on; a run without it finishes the store",
    )
    parser.add_argument(
        "--made",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders with shards made elsewhere; whole ones are reused",
    )


def _shard(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N; give 1/4 to 4/4 for four machines")
    return int(number), int(of)


def run(options: argparse.Namespace) -> Outcome:
    """Make the labels and print a summary per split."""
    from polarmask.labels.precompute import (
        EveryNth,
        Workers,
        find_splits,
        precompute,
        precompute_shards,
    )
    from polarmask.system.device import find_device

    data, out, config = options.data, options.out, config_of(options)
    splits = find_splits(data)
    device = find_device("cuda").type if options.device == "cuda" else None
    workers = Workers(options.workers, device)
    if options.shard is not None:
        shards = EveryNth(*options.shard)
        made = precompute_shards(
            data, out, config, shards, splits=splits, workers=workers, strict=options.strict
        )
        print(f"{made.count} shards of {shards.first}/{shards.n} are in {out}; when all are made,")
        print("run the same command without --shard to finish the store (--made FOLDER ...)")
        return Outcome(made.data)
    store = precompute(
        data,
        out,
        config,
        splits=splits,
        workers=workers,
        made=options.made,
        strict=options.strict,
    )
    if "val" not in splits:
        print(f"val: {options.data} has no instances_val.json, labels are for training only")
    for split in splits:
        summary = store.summary(split)
        print(
            f"{split}: {summary.images} images, {summary.instances} instances, "
            f"{summary.positives} positives, {summary.without_positive} instances without one, "
            f"{summary.ignored} ignored, reachable mask IoU {summary.mean_iou:.3f}"
        )
    return Outcome([store.data(split) for split in splits])
