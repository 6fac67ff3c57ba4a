"""The evaluation page: mask AP, curves, counts, best and worst images of a model."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from math import nan

import numpy as np

from polarmask.data.coco import CocoData, ImageRecord
from polarmask.data.images import read_image
from polarmask.evaluation.coco_ap import score_predictions
from polarmask.evaluation.evaluate import Evaluation, ImageResult
from polarmask.inference.drawing import SKY, VERMILION, WHITE, YELLOW, Shape, draw_shapes
from polarmask.inference.instances import Instances
from polarmask.report.charts import bar_chart, line_chart, scatter_chart
from polarmask.report.page import Figure, Tile, fraction, make_figures, render

_IMAGES = 6
"""At most, of the best and of the worst images each."""
_OVERLAY_SIDE = 720
_MOST_DOTS = 2000


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
        Tile("medium", fraction(evaluation.mask_ap_medium), "AP"),
        Tile("large", fraction(evaluation.mask_ap_large), "AP, above 96 x 96 px"),
        Tile("mask AR", fraction(evaluation.mask_ar), f"{evaluation.max_detections} detections"),
    ]


def _operating(evaluation: Evaluation, true: int, false: int, missed: int) -> list[Tile]:
    return [
        Tile("score at least", f"{evaluation.operating_score:.2f}", "best F1 on this split"),
        Tile("precision", _ratio(true, true + false), "of the detections are true"),
        Tile("recall", _ratio(true, true + missed), "of the objects are found"),
        Tile("F1", _ratio(2 * true, 2 * true + false + missed)),
        Tile("accuracy", _ratio(true, true + false + missed), "true of true, false, missed"),
    ]


def _ratio(part: int, whole: int) -> str:
    return fraction(part / whole if whole else nan)


def _draw(
    results: list[ImageResult],
    evaluation: Evaluation,
    data: CocoData,
    predictions: Mapping[int, Instances],
) -> list[Figure]:
    wanted = {result.image_id for result in results}
    records = {image.id: image for image in data.images if image.id in wanted}
    shapes = _shapes_by_image(data, records, predictions, evaluation.operating_score)
    return make_figures(
        (
            (
                draw_shapes(
                    read_image(data.image_path(records[result.image_id])),
                    shapes[result.image_id],
                    side=_OVERLAY_SIDE,
                ),
                result.file_name,
                f"quality {result.quality:.2f}: {result.true_positives} found, "
                f"{result.false_negatives} missed, {result.false_positives} false",
            )
            for result in results
        ),
        expected=2 * _IMAGES,
    )


def _shapes_by_image(
    data: CocoData,
    records: Mapping[int, ImageRecord],
    predictions: Mapping[int, Instances],
    min_score: float,
) -> dict[int, list[Shape]]:
    """Colour true and false detections and missed objects; outlines of found objects are white."""
    scores = score_predictions(replace(data, images=tuple(records.values())), predictions)
    shapes: dict[int, list[Shape]] = defaultdict(list)
    found: dict[int, set[int]] = defaultdict(set)
    for image_id, row, score, owner in zip(
        scores.image_D.tolist(),
        scores.row_D.tolist(),
        scores.score_D.tolist(),
        scores.object_D.tolist(),
        strict=True,
    ):
        if score < min_score:
            continue
        found[image_id].add(owner)
        polygons = tuple(predictions[image_id].parts(row))
        colour = SKY if owner >= 0 else VERMILION
        shapes[image_id].append(Shape(polygons, colour, label=f"{score:.2f}", opacity=0.3))
    for image in records.values():
        for row, annotation in enumerate(image.annotations):
            if annotation.parts:
                hit = row in found[image.id]
                shapes[image.id].append(
                    Shape(annotation.parts, WHITE if hit else YELLOW, opacity=0.0 if hit else 0.4)
                )
    return shapes
