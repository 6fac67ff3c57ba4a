"""`polarmask evaluate`: compute COCO mask AP."""

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from polarmask.commands.arguments import (
    add_data_argument,
    add_device_arguments,
    add_max_pixels_argument,
    add_strict_argument,
    add_tile_argument,
)
from polarmask.commands.outcome import Outcome
from polarmask.errors import DataError
from polarmask.system.argument_types import output_folder

if TYPE_CHECKING:
    from polarmask.data.coco import CocoData
    from polarmask.evaluation.evaluate import Evaluation
    from polarmask.report.comparison import Compared

HELP = "compute COCO mask AP"
EXAMPLE = "polarmask evaluate --model runs/first --data data"


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
        "--against", metavar="MODEL", help="second model: compare the two on the same images"
    )
    parser.add_argument(
        "--out",
        type=output_folder,
        help="folder for evaluation.json and pages (default: the run folder, if the model is in "
        "one)",
    )


def run(options: argparse.Namespace) -> Outcome:
    """Evaluate in the process group that torchrun describes; the first process prints."""
    from polarmask.data.coco import CocoData, load_coco
    from polarmask.evaluation.evaluate import evaluate_together
    from polarmask.model_sources.open_model import open_model
    from polarmask.report.comparison import Compared
    from polarmask.system.distributed import process_group

    names = [options.model, *([options.against] if options.against else [])]
    compared: list[Compared] = []
    read: list[CocoData] = []
    provenance: dict[str, str] = {}
    min_scores: dict[str, float] = {}
    with process_group(options.device) as device:
        for name in names:
            predictor = open_model(name, device=device, threads=options.threads, tile=options.tile)
            images = predictor.card.config.input
            if options.max_pixels:
                images = replace(images, max_pixels=options.max_pixels)
            data = load_coco(options.data, options.split, check_pixels=True, config=images)
            data.summary.require_complete(strict=options.strict)
            read.append(data)
            _require_same_images(read, names)
            judged = evaluate_together(predictor, data)
            min_scores[name] = predictor.card.min_score
            if judged is not None:
                compared.append(Compared(name, *judged))
                provenance = provenance or dict(predictor.card.provenance)
    if not compared:
        return Outcome([])
    for each in compared:
        name = f"{each.name}: " if len(compared) > 1 else ""
        _print(each.evaluation, name, min_scores[each.name])
    if folder := options.out or _own_folder(options.model):
        _write(folder, compared, read[0], provenance)
    return Outcome([compared[0].evaluation.data])


def _require_same_images(read: "list[CocoData]", names: list[str]) -> None:
    """Refuse to compare on images of which one model can't take some."""
    first, last = ({image.id for image in each.images} for each in (read[0], read[-1]))
    if first != last:
        raise DataError(
            f"{len(first ^ last)} images of {read[0].split} can be used by only one of {names[0]} "
            f"and {names[1]}, whose `input` settings differ; evaluate each without --against, or "
            "take those images out of the annotations"
        )


def _own_folder(model: str) -> Path | None:
    """Return the run folder that the model is in; None if it is in none, or can't be written."""
    from polarmask.training.run_folder import run_folder_of

    folder = run_folder_of(model)
    return folder if folder is not None and os.access(folder, os.W_OK) else None


def _print(result: "Evaluation", name: str, min_score: float) -> None:
    print(
        f"{name}mask AP {result.mask_ap:.4f}  AP50 {result.mask_ap50:.4f}  "
        f"AP75 {result.mask_ap75:.4f}  ({result.num_images} images, "
        f"{result.num_instances} instances)"
    )
    print(
        f"{name}best F1 {result.best_f1:.4f} with scores from {result.operating_score:.3f}; "
        f"the model shows those from {min_score:.3f}"
    )


def _write(
    folder: Path, compared: "list[Compared]", data: "CocoData", provenance: Mapping[str, str]
) -> None:
    """Write results and page of the first model, and the comparison with the second."""
    from polarmask.report.comparison import comparison_page
    from polarmask.report.evaluation import evaluation_page
    from polarmask.report.index import add_page
    from polarmask.system.files import write_text

    own = compared[0]
    facts = {"data": str(data.root), "split": data.split}
    write_text(folder / "evaluation.json", own.evaluation.to_json())
    page = evaluation_page(
        own.evaluation,
        data,
        own.predictions,
        provenance={"model": own.name, **facts, **provenance},
    )
    print(f"page: {add_page(folder, 'evaluation.html', page)}")
    if len(compared) > 1:
        page = comparison_page(own, compared[1], data, provenance=facts)
        print(f"page: {add_page(folder, 'comparison.html', page)}")
