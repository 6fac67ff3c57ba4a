"""`polarmask inspect`: look at data before training."""

import argparse
from pathlib import Path

from polarmask.commands.arguments import add_config_arguments, add_strict_argument, config_of
from polarmask.commands.outcome import Outcome
from polarmask.system.argument_types import at_least, output_folder

HELP = "look at data before training: sizes, levels, upper bounds, what to set"
EXAMPLE = "polarmask inspect data --out runs/inspection"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add data, config and output folder."""
    parser.add_argument(
        "data", type=Path, help="folder with images/ and annotations/instances_{train,val}.json"
    )
    parser.add_argument("--split", default="train", help="which annotations (default: train)")
    add_config_arguments(parser)
    add_strict_argument(parser)
    parser.add_argument(
        "--max-images", type=at_least(1), default=2000, help="images to look at (default: 2000)"
    )
    parser.add_argument(
        "--out", type=output_folder, help="folder for inspection.html and worst.jpg"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Print the inspection of a split, and write it as a page with `--out`."""
    from polarmask.config.presets import AUTO
    from polarmask.data.coco import load_coco
    from polarmask.data.crop import crops_text
    from polarmask.evaluation.auto_preset import describe_auto
    from polarmask.evaluation.inspect_data import inspect_data
    from polarmask.evaluation.inspection_text import describe
    from polarmask.evaluation.recommend import shrink_warning

    config = config_of(options)
    data = load_coco(options.data, options.split, config=config.input)
    data.summary.require_complete(strict=options.strict)
    inspection = inspect_data(data, config, max_images=options.max_images)
    print(describe(inspection))
    if config.name == AUTO:
        print(f"--preset {AUTO}, the default, has these settings, and:")
        print(f"  {describe_auto(config, data)}")
    if config.input.crop:
        print(crops_text(data.images, config.input))
    if warning := shrink_warning(data, config):
        print(f"warning: {warning}")
    if options.out:
        from polarmask.inference.drawing import write_jpeg
        from polarmask.report.index import add_page
        from polarmask.report.inspection import inspection_page, worst_overlays, worst_sheet

        page = inspection_page(inspection, data, config=config)
        write_jpeg(options.out / "worst.jpg", worst_sheet(worst_overlays(inspection, data)))
        print(f"page: {add_page(options.out, 'inspection.html', page)}")
    return Outcome([inspection.data])
