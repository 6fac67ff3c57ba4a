"""`polarmask evaluate`: compute COCO mask AP."""

import argparse
from dataclasses import replace

from polarmask.commands.arguments import (
    add_data_argument,
    add_device_arguments,
    add_max_pixels_argument,
    add_strict_argument,
    add_tile_argument,
)
from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import output_folder

HELP = "compute COCO mask AP"
EXAMPLE = "polarmask evaluate --model runs/first/model --data data --out runs/first/report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add model, data and output folder."""
    parser.add_argument(
        "--model", required=True, help="model folder, run folder, checkpoint.pt or .mar"
    )
    add_data_argument(parser)
    parser.add_argument("--split", default="val", help="which annotations (default: val)")
    add_strict_argument(parser)
    add_device_arguments(parser)
    add_tile_argument(parser)
    add_max_pixels_argument(parser, default=None)
    parser.add_argument(
        "--out", type=output_folder, help="folder for evaluation.json and report.html"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Evaluate in the process group that torchrun describes; the first process prints."""
    from polarmask.data.coco import load_coco
    from polarmask.evaluation.evaluate import evaluate_together
    from polarmask.model_sources.open_model import open_model
    from polarmask.system.distributed import process_group
    from polarmask.system.files import write_text

    with process_group(options.device) as device:
        predictor = open_model(
            options.model, device=device, threads=options.threads, tile=options.tile
        )
        images = predictor.card.config.input
        if options.max_pixels:
            images = replace(images, max_pixels=options.max_pixels)
        data = load_coco(options.data, options.split, check_pixels=True, config=images)
        data.summary.require_complete(strict=options.strict)
        judged = evaluate_together(predictor, data)
    if judged is None:
        return Outcome([])
    evaluation, predictions = judged
    print(
        f"mask AP {evaluation.mask_ap:.4f}  AP50 {evaluation.mask_ap50:.4f}  "
        f"AP75 {evaluation.mask_ap75:.4f}  ({evaluation.num_images} images, "
        f"{evaluation.num_instances} instances)"
    )
    if options.out:
        from polarmask.report.evaluation import evaluation_page

        write_text(options.out / "evaluation.json", evaluation.to_json())
        provenance = predictor.card.provenance
        page = evaluation_page(evaluation, data, predictions, provenance=provenance)
        write_text(options.out / "report.html", page)
        print(f"report: {options.out / 'report.html'}")
    return Outcome([evaluation.data])
