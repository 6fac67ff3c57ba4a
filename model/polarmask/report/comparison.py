"""The comparison page: a candidate beside a champion, or any model beside another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from markupsafe import Markup

from polarmask.data.coco import CocoData
from polarmask.evaluation.evaluate import Evaluation, ImageResult
from polarmask.evaluation.object_sizes import SIDE_EDGES, range_labels
from polarmask.evaluation.operating_point import THRESHOLDS_S
from polarmask.inference.instances import Instances
from polarmask.report.charts import Points, bar_chart, line_chart
from polarmask.report.found_beside_truth import draw_found
from polarmask.report.page import Figure, Tile, fraction, make_figures, render

_IMAGES = 6
"""At most, of those that got better and of those that got worse each."""
_SMALLEST_CHANGE = 0.005
"""Of an image's quality, in [0, 1], that is shown."""


@dataclass(frozen=True)
class Compared:
    """One of two models on the same split."""

    name: str
    evaluation: Evaluation
    predictions: Mapping[int, Instances]
    """By image id, at least of the images that `changed_images` names."""


def changed_images(candidate: Evaluation, champion: Evaluation) -> tuple[list[int], list[int]]:
    """Return the ids of the images that got better, and worse, by panoptic quality; most first."""
    before = {image.image_id: image.quality for image in champion.per_image}
    changes = sorted(
        (change, image.image_id)
        for image in candidate.per_image
        if abs(change := image.quality - before.get(image.image_id, np.nan)) >= _SMALLEST_CHANGE
    )
    worse = [key for change, key in changes if change < 0][:_IMAGES]
    better = [key for change, key in reversed(changes) if change > 0][:_IMAGES]
    return better, worse


def comparison_page(
    candidate: Compared,
    champion: Compared,
    data: CocoData,
    *,
    provenance: Mapping[str, str],
    title: str = "Comparison",
) -> str:
    """Return a self-contained HTML page below 2 MB.

    Args:
        candidate: The newer model.
        champion: What it is compared with, on the same data.
        data: Ground truth.
        provenance: Shown as name and value; empty values are left out.
        title: Headline.
    """
    new, old = candidate.evaluation, champion.evaluation
    better, worse = changed_images(new, old)
    figures = _draw(candidate, champion, data, [*better, *worse])
    return render(
        "comparison.html",
        title=title,
        summary=f"mask AP {fraction(new.mask_ap)} ({candidate.name}), "
        f"{fraction(old.mask_ap)} ({champion.name})",
        provenance=provenance,
        data=[new.data],
        candidate=candidate,
        champion=champion,
        tiles=_tiles(new, old),
        precision_recall=_lines(
            _recall_and_precision(new), _recall_and_precision(old), "recall", "precision"
        ),
        f1=_lines(
            _score_and_f1(new), _score_and_f1(old), "lowest score that counts", "F1 at IoU .50"
        ),
        missed=_missed_by_size(new, old),
        categories=_categories(new, old),
        better=figures[: len(better)],
        worse=figures[len(better) :],
    )


def _tiles(new: Evaluation, old: Evaluation) -> list[Tile]:
    pairs = {
        "mask AP": (new.mask_ap, old.mask_ap),
        "mask AP50": (new.mask_ap50, old.mask_ap50),
        "mask AP75": (new.mask_ap75, old.mask_ap75),
        "small": (new.mask_ap_small, old.mask_ap_small),
        "medium": (new.mask_ap_medium, old.mask_ap_medium),
        "large": (new.mask_ap_large, old.mask_ap_large),
        "best F1": (new.best_f1, old.best_f1),
    }
    return [
        Tile(name, fraction(value), f"{_signed(value - before)} from {fraction(before)}")
        for name, (value, before) in pairs.items()
        if not (isnan(value) and isnan(before))
    ]


def _signed(change: float) -> str:
    return "-" if isnan(change) else f"{change:+.3f}"


def _lines(new: Points, old: Points, x_label: str, y_label: str) -> Markup:
    return line_chart({"candidate": new, "champion": old}, x_label=x_label, y_label=y_label)


def _recall_and_precision(result: Evaluation) -> Points:
    """Return the curve that is the mean over IoU .50 to .95."""
    return list(
        zip(np.linspace(0, 1, 101).tolist(), result.precision_recall[2].tolist(), strict=True)
    )


def _score_and_f1(result: Evaluation) -> Points:
    return list(zip(THRESHOLDS_S.tolist(), result.thresholds[2].tolist(), strict=True))


def _missed_by_size(new: Evaluation, old: Evaluation) -> Markup:
    """Draw the share of objects that each misses, without the empty ends."""
    total_Z = new.found_by_size.sum(axis=0)
    used = np.flatnonzero(total_Z)
    first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
    missed = {
        name: (100 * result.found_by_size[2] / np.maximum(total_Z, 1))[first:last].tolist()
        for name, result in (("candidate", new), ("champion", old))
    }
    return bar_chart(
        range_labels(SIDE_EDGES)[first:last],
        missed,
        x_label="square root of the object's area, pixels",
        y_label="objects missed, %",
    )


def _categories(new: Evaluation, old: Evaluation) -> list[tuple[str, int, float, float, float]]:
    """Return name, objects, both AP and the change, the largest loss first."""
    before = {category.category_id: category.ap for category in old.per_category}
    rows = [
        (each.name, each.instances, each.ap, before[each.category_id])
        for each in new.per_category
        if each.category_id in before
    ]
    return sorted(
        ((name, count, ap, was, ap - was) for name, count, ap, was in rows),
        key=lambda row: row[-1],
    )


def _draw(
    candidate: Compared, champion: Compared, data: CocoData, image_ids: Sequence[int]
) -> list[Figure]:
    """Draw what the champion found beside what the candidate found."""
    sides = (champion, candidate)
    found = [
        draw_found(data, image_ids, each.predictions, each.evaluation.operating_score)
        for each in sides
    ]
    results = [_by_id(each.evaluation) for each in sides]
    return make_figures(
        (
            (
                [drawn[key] for drawn in found],
                results[1][key].file_name,
                _change(*(result[key] for result in results)),
            )
            for key in image_ids
        ),
        expected=2 * _IMAGES,
    )


def _by_id(evaluation: Evaluation) -> dict[int, ImageResult]:
    return {image.image_id: image for image in evaluation.per_image}


def _change(before: ImageResult, after: ImageResult) -> str:
    return (
        f"quality {before.quality:.2f} to {after.quality:.2f}; "
        f"found {before.true_positives} to {after.true_positives}, "
        f"missed {before.false_negatives} to {after.false_negatives}, "
        f"false {before.false_positives} to {after.false_positives}"
    )
