"""The inspection page, before training: sizes, levels, upper bounds, recommended settings."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polarmask.config.presets import AUTO
from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData
from polarmask.data.crop import crops_text
from polarmask.data.images import read_image
from polarmask.evaluation.auto_preset import describe_auto
from polarmask.evaluation.inspect_data import Inspection, Levels
from polarmask.evaluation.object_sizes import SIDE_EDGES, range_labels
from polarmask.inference.drawing import (
    SKY,
    YELLOW,
    Shape,
    contact_sheet,
)
from polarmask.report.charts import bar_chart
from polarmask.report.close_up import draw_close_up
from polarmask.report.page import Tile, make_figures, render

_SHEET_IMAGES = 12


def inspection_page(
    inspection: Inspection, data: CocoData, *, config: RunConfig, title: str = "Before training"
) -> str:
    """Return a self-contained HTML page below 2 MB."""
    low, middle, high = inspection.side_quantiles
    part = inspection.images < inspection.total_images
    learned = "all parts" if config.labels.parts == "all" else "the largest part"
    tiles = [
        Tile(
            "images",
            f"{inspection.images:,}",
            f"of {inspection.total_images:,}, evenly spread" if part else "all of the split",
        ),
        Tile("objects", f"{inspection.instances:,}", f"{inspection.crowds:,} crowd regions"),
        Tile("in several parts", f"{inspection.in_parts:,}", f"objects; learned: {learned}"),
        Tile("size", f"{middle:.0f} px", f"median; 80 % are from {low:.0f} to {high:.0f}"),
        Tile(
            "upper-bound AP",
            f"{inspection.evaluation.mask_ap:.3f}",
            f"with {config.model.num_rays} exact rays",
        ),
    ]
    counts = [float(count) for count in inspection.size_counts]
    overlays = worst_overlays(inspection, data)
    return render(
        "inspection.html",
        title=title,
        summary=f"{inspection.instances:,} objects in {inspection.images:,} images of "
        f"{inspection.split}; {inspection.recommendation.reason}",
        provenance={"data": str(data.root), "split": inspection.split, "preset": config.name},
        data=[inspection.data],
        tiles=tiles,
        sizes=bar_chart(
            range_labels(SIDE_EDGES),
            {"objects": counts},
            x_label="square root of area, pixels of the network's input",
            y_label="objects",
        ),
        levels=_level_chart(inspection.levels),
        recommended_levels=_level_chart(inspection.recommended_levels),
        without=(
            inspection.levels.without_positive,
            inspection.recommended_levels.without_positive,
        ),
        bounds=inspection.bounds,
        recommendation=inspection.recommendation,
        overrides=" ".join(
            f"--set '{setting}'" for setting in inspection.recommendation.overrides()
        ),
        auto=describe_auto(config, data) if config.name == AUTO else "",
        crops=crops_text(data.images, config.input),
        worst=make_figures(overlays, expected=_SHEET_IMAGES),
    )


def _level_chart(levels: Levels) -> str:
    return bar_chart(
        [f"stride {stride}" for stride in levels.strides],
        {"objects": [float(count) for count in levels.instances]},
        x_label="level",
        y_label="objects",
    )


def worst_overlays(
    inspection: Inspection, data: CocoData
) -> list[tuple[NDArray[np.uint8], str, str]]:
    """Draw the worst-fitting object of each image: overlay, file name, object and IoU."""
    worst_of: dict[int, tuple[int, float]] = {}
    for image_id, row, iou in inspection.worst:
        worst_of.setdefault(image_id, (row, iou))
    record_of = {record.id: record for record in data.images if record.id in worst_of}
    overlays = []
    for image_id, (row, iou) in list(worst_of.items())[:_SHEET_IMAGES]:
        record = record_of[image_id]
        annotation = [a for a in record.annotations if a.parts][row]
        found = inspection.predictions[image_id]
        shapes = [
            Shape(annotation.parts, YELLOW, opacity=0.2),
            Shape(tuple(found.parts(row)), SKY, opacity=0.25, center=found.centers[row]),
        ]
        overlay = draw_close_up(read_image(data.image_path(record)), annotation, shapes)
        name = data.categories[annotation.category].name
        overlays.append((overlay, record.file_name, f"{name} {annotation.id}, IoU {iou:.2f}"))
    return overlays


def worst_sheet(overlays: Sequence[tuple[NDArray[np.uint8], str, str]]) -> NDArray[np.uint8]:
    """Put the overlays side by side; (H, W, 3) uint8 RGB."""
    return contact_sheet(
        [overlay for overlay, _, _ in overlays],
        captions=[f"{note}  {name}"[:60] for _, name, note in overlays],
    )
