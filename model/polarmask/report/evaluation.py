"""The evaluation page: mask AP, curves, counts, best and worst images of a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan

import numpy as np
from markupsafe import Markup

from polarmask.data.coco import CocoData
from polarmask.evaluation.evaluate import Evaluation, ImageResult
from polarmask.evaluation.object_sizes import SIDE_EDGES, range_labels
from polarmask.evaluation.operating_point import THRESHOLDS_S
from polarmask.inference.instances import Instances
from polarmask.report.charts import bar_chart, line_chart, scatter_chart
from polarmask.report.found_beside_truth import draw_found, draw_true
from polarmask.report.page import Figure, Tile, fraction, make_figures, render

_IMAGES = 6
"""At most, of the best and of the worst images each."""
_MOST_DOTS = 2000
_CONFUSIONS = 20
_MATRIX_CATEGORIES = 12
"""A larger matrix can't be read."""


def evaluation_page(
    evaluation: Evaluation,
    data: CocoData,
    predictions: Mapping[int, Instances],
    *,
    provenance: Mapping[str, str],
    title: str = "Evaluation",
) -> str:
    """Return a self-contained HTML page below 2 MB.

    Args:
        evaluation: Of these predictions on this data.
        data: Ground truth.
        predictions: By image id.
        provenance: Shown as name and value; empty values are left out.
        title: Headline.
    """
    true, false, missed = _totals(evaluation)
    ranked = sorted(
        (image for image in evaluation.per_image if image.quality == image.quality),
        key=lambda image: image.quality,
    )
    number = min(_IMAGES, len(ranked) // 2)
    worst, best = ranked[:number] or ranked, ranked[::-1][:number]
    return render(
        "evaluation.html",
        title=title,
        summary=f"mask AP {fraction(evaluation.mask_ap)}, AP50 {fraction(evaluation.mask_ap50)} on "
        f"{evaluation.num_images:,} images of {evaluation.split}",
        provenance=provenance,
        data=[evaluation.data],
        evaluation=evaluation,
        headline=_headline(evaluation),
        operating=_operating(evaluation, true, false, missed),
        precision_recall=line_chart(
            {
                name: list(zip(np.linspace(0, 1, 101).tolist(), curve, strict=True))
                for name, curve in zip(
                    ("IoU .50", "IoU .75", "mean of IoU .50 to .95"),
                    evaluation.precision_recall.tolist(),
                    strict=True,
                )
            },
            x_label="recall",
            y_label="precision",
        ),
        scores=bar_chart(
            [f"{low:.2f}" for low in np.linspace(0, 1, 21)[:-1]],
            {
                "true (IoU >= .5)": evaluation.score_histogram[0].tolist(),
                "false": evaluation.score_histogram[1].tolist(),
            },
            x_label="score",
            y_label="detections",
            stacked=True,
        ),
        f1=line_chart(
            {
                name: list(zip(THRESHOLDS_S.tolist(), curve, strict=True))
                for name, curve in zip(
                    ("precision", "recall", "F1"), evaluation.thresholds.tolist(), strict=True
                )
            },
            x_label="lowest score that counts",
            y_label="at mask IoU .50",
            mark=evaluation.operating_score,
        ),
        sizes=_sizes(evaluation),
        counts=scatter_chart(
            {
                image.file_name: (image.objects, image.detections)
                for image in evaluation.per_image[:_MOST_DOTS]
            },
            x_label="objects in the image",
            y_label="objects found",
        ),
        totals=(true, false, missed),
        categories=sorted(evaluation.per_category, key=lambda category: -category.ap),
        confusions=_confusions(evaluation, data),
        matrix=_matrix(evaluation, data),
        best=_draw(best, evaluation, data, predictions),
        worst=_draw(worst, evaluation, data, predictions),
    )


def _totals(evaluation: Evaluation) -> tuple[int, int, int]:
    return (
        sum(image.true_positives for image in evaluation.per_image),
        sum(image.false_positives for image in evaluation.per_image),
        sum(image.false_negatives for image in evaluation.per_image),
    )


def _headline(evaluation: Evaluation) -> list[Tile]:
    return [
        Tile("mask AP", fraction(evaluation.mask_ap), "mean of IoU .50 to .95"),
        Tile("mask AP50", fraction(evaluation.mask_ap50), "IoU .50"),
        Tile("mask AP75", fraction(evaluation.mask_ap75), "IoU .75"),
        Tile("small", fraction(evaluation.mask_ap_small), "AP, below 32 x 32 px"),
        Tile("medium", fraction(evaluation.mask_ap_medium), "AP, 32 x 32 to 96 x 96 px"),
        Tile("large", fraction(evaluation.mask_ap_large), "AP, above 96 x 96 px"),
        Tile("mask AR", fraction(evaluation.mask_ar), f"{evaluation.max_detections} detections"),
    ]


def _operating(evaluation: Evaluation, true: int, false: int, missed: int) -> list[Tile]:
    return [
        Tile("score at least", f"{evaluation.operating_score:.2f}", "best F1 on this split"),
        Tile("precision", _ratio(true, true + false), "of the detections are true"),
        Tile("recall", _ratio(true, true + missed), "of the objects are found"),
        Tile("F1", fraction(evaluation.best_f1)),
        Tile("accuracy", _ratio(true, true + false + missed), "true / (true + false + missed)"),
    ]


def _ratio(part: int, whole: int) -> str:
    return fraction(part / whole if whole else nan)


def _draw(
    results: list[ImageResult],
    evaluation: Evaluation,
    data: CocoData,
    predictions: Mapping[int, Instances],
) -> list[Figure]:
    ids = [result.image_id for result in results]
    true = draw_true(data, ids)
    found = draw_found(data, ids, predictions, evaluation.operating_score)
    return make_figures(
        (
            (
                (true[result.image_id], found[result.image_id]),
                result.file_name,
                f"quality {result.quality:.2f}: {result.true_positives} found, "
                f"{result.false_negatives} missed, {result.false_positives} false",
            )
            for result in results
        ),
        expected=2 * _IMAGES,
    )


def _sizes(evaluation: Evaluation) -> Markup:
    """Draw which objects are missed or outlined badly, by size, without the empty ends."""
    counts_3Z = evaluation.found_by_size
    used = np.flatnonzero(counts_3Z.sum(axis=0))
    first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
    share_3Z = 100 * counts_3Z / np.maximum(counts_3Z.sum(axis=0), 1)
    return bar_chart(
        range_labels(SIDE_EDGES)[first:last],
        {
            "found, mask IoU below .75": share_3Z[1, first:last].tolist(),
            "missed": share_3Z[2, first:last].tolist(),
        },
        x_label="square root of the object's area, pixels",
        y_label="share of objects, %",
        stacked=True,
    )


@dataclass(frozen=True)
class _Confused:
    """Objects of one category that were found as another."""

    true: str
    found: str
    count: int
    share: float
    """Of the objects of the true category, in [0, 1]."""


def _confusions(evaluation: Evaluation, data: CocoData) -> list[_Confused]:
    """Return the most frequent confusions of categories, most frequent first."""
    names = [category.name for category in data.categories]
    matrix = evaluation.confusion
    pairs = [
        _Confused(true, found, int(matrix[row, column]), matrix[row, column] / matrix[row].sum())
        for row, true in enumerate(names)
        for column, found in enumerate(names)
        if matrix.size and row != column and matrix[row, column]
    ]
    return sorted(pairs, key=lambda pair: -pair.count)[:_CONFUSIONS]


def _matrix(evaluation: Evaluation, data: CocoData) -> list[tuple[str, list[tuple[int, float]]]]:
    """Return name and (count, share of the row) of each row, of few categories only."""
    if not 2 <= len(data.categories) <= _MATRIX_CATEGORIES:
        return []
    names = [*(category.name for category in data.categories), "no object"]
    return [
        (name, [(count, count / max(1, sum(row))) for count in row])
        for name, row in zip(names, evaluation.confusion.tolist(), strict=True)
    ]
