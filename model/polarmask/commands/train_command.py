"""`polarmask train`: train a model, or resume training it."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from polarmask.commands.arguments import (
    add_config_arguments,
    add_data_argument,
    add_device_arguments,
    add_strict_argument,
    config_of,
)
from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import at_least, output_folder

HELP = "train a model; resumes if the run folder holds a checkpoint"
EXAMPLE = "polarmask train --data data --out runs/first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add data, config, run folder and how to compute."""
    add_data_argument(parser)
    parser.add_argument(
        "--out", type=output_folder, required=True, help="run folder; resumes if not empty"
    )
    parser.add_argument("--labels", type=Path, help="label store (default: made in the run folder)")
    add_config_arguments(parser)
    add_strict_argument(parser)
    add_device_arguments(parser)
    parser.add_argument(
        "--loader-workers",
        type=at_least(0),
        default=0,
        help="loader processes per process (default: 0)",
    )
    parser.add_argument(
        "--images-per-process",
        type=at_least(1),
        metavar="N",
        help="batch size as N times the processes (default: optim.batch_size over all processes)",
    )
    parser.add_argument(
        "--passes",
        type=at_least(1),
        default=1,
        help="gradient-accumulation steps per process, to save memory (default: 1)",
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the network with torch.compile first"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="bitwise reproducible; slower on CUDA"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="write curves and overlays to OUT/tensorboard"
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="fine-tune: start from the weights of a model folder, run folder, checkpoint.pt, "
        "archive (.mar) or its URL; without --preset with its settings, too",
    )
    parser.add_argument(
        "--backbone-weights",
        metavar="FILE|URL|NAME",
        help="start from a state dict file, its URL, a torchvision name, or timm for the weights "
        "that timm has for the backbone (default: the preset's)",
    )
    parser.add_argument(
        "--provenance",
        type=_fact,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fact to keep in the model, such as data_commit=3f2a1bc; may be repeated",
    )


def _fact(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def run(options: argparse.Namespace) -> Outcome:
    """Train in the process group that torchrun describes, and print the model folder."""
    import torch

    from polarmask.model_sources.open_model import open_weights
    from polarmask.report.index import INDEX
    from polarmask.report.run_pages import RunPages
    from polarmask.system.distributed import is_first, process_group, world_size
    from polarmask.training.run_folder import RunData
    from polarmask.training.train import TrainOptions, train

    if options.threads:
        torch.set_num_threads(options.threads)
    initial = open_weights(options.init_from) if options.init_from else None
    if options.backbone_weights:
        # With the other settings at once: frozen batch norm can't be set without weights.
        weights = json.dumps(options.backbone_weights)  # a file named 1 is a name, too
        options.set = [*options.set, f"backbone_weights={weights}"]
    config = config_of(options, like=initial.config if initial else None)
    with process_group(options.device) as device:
        if options.images_per_process:
            batch_size = options.images_per_process * world_size()
            config = replace(config, optim=replace(config.optim, batch_size=batch_size))
        folder = train(
            config,
            TrainOptions(
                data=options.data,
                out=options.out,
                labels=options.labels,
                strict=options.strict,
                device=device,
                loader_workers=options.loader_workers,
                passes=options.passes,
                compiled=options.compile,
                deterministic=options.deterministic,
                tensorboard=options.tensorboard,
                initial=initial,
                provenance=_provenance(options),
                observer=RunPages(options.out, _provenance(options)),
            ),
        )
        if not is_first():
            return Outcome([])
    print(f"model: {folder}")
    print(f"pages: {options.out / INDEX}")
    used = RunData.read(options.out)
    return Outcome(list(used.splits) if used else [])


def _provenance(options: argparse.Namespace) -> dict[str, str]:
    start = {"init_from": options.init_from} if options.init_from else {}
    return start | dict(options.provenance)
