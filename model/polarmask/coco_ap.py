"""Detections against ground truth by COCO's rules: hotcoco matches and draws the curves.

It gives pycocotools' numbers to the last bit and takes a tenth of its time (ADR 0018); a test has
pycocotools itself as the referee.

Dimension key
    T: IoU thresholds .5, .55, ... .95    Q: recall 0, .01, ... 1    K: categories of the data
    A: object sizes (all, small, medium, large)    D: detections
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import hotcoco
import numpy as np
from numpy.typing import NDArray

from polarmask.coco import CocoData
from polarmask.inference import Instances
from polarmask.masks import Rle, rle_areas, rle_from_segmentation, rle_iou

_DETECTION_LIMITS = (100, 500, 1000, 5000, 10_000)


@dataclass(frozen=True, eq=False)
class CocoScores:
    """What was matched, and how good that is."""

    precision_TQKA: NDArray[np.float64]
    """-1 for categories without objects of the size."""
    recall_TKA: NDArray[np.float64]
    """Highest recall; -1 as above."""
    max_detections: int
    """Detections per image and category that count."""
    image_D: NDArray[np.int64]
    """Image id of each detection; those forgiven inside crowd regions are left out."""
    row_D: NDArray[np.int64]
    """Place among the image's Instances."""
    score_D: NDArray[np.float64]
    object_D: NDArray[np.int64]
    """Place among the image's annotations of the object that it is matched to at IoU .5, or -1."""
    iou_D: NDArray[np.float64]
    """Mask IoU with that object; 0 for a false detection."""


def score_predictions(data: CocoData, predictions: Mapping[int, Instances]) -> CocoScores:
    """Match predictions to objects.

    Args:
        data: Ground truth.
        predictions: By image id; an image without an entry has no detections. Categories that
            the data does not list are left out.
    """
    most = max(
        (sum(not annotation.crowd for annotation in image.annotations) for image in data.images),
        default=0,
    )
    truths, detections = _truths(data), _detections(data, predictions)
    header = {
        "images": [
            {"id": image.id, "height": image.height, "width": image.width} for image in data.images
        ],
        "categories": [{"id": category.id, "name": category.name} for category in data.categories],
    }
    scorer = hotcoco.COCOeval(
        hotcoco.COCO({**header, "annotations": truths.annotations}),
        hotcoco.COCO({**header, "annotations": detections.annotations}),
        "segm",
    )
    limit = next(limit for limit in _DETECTION_LIMITS if limit >= most)
    scorer.params.max_dets = [limit]
    scorer.evaluate()
    scorer.accumulate()
    curves = scorer.eval
    assert curves is not None  # noqa: S101  # accumulate has made them
    return CocoScores(
        precision_TQKA=curves["precision"][..., 0],
        recall_TKA=curves["recall"][..., 0],
        max_detections=limit,
        **_matches(scorer, truths, detections),
    )


class _Annotations(NamedTuple):
    """Objects or detections; the one at place i has the id i + 1, because COCO's 0 is no match."""

    annotations: list[dict[str, Any]]
    rows: list[int]
    """Place of each among those of its image."""

    def add(self, image_id: int, row: int, category_id: int, rle: Rle, **more: float) -> None:
        self.rows.append(row)
        self.annotations.append(
            {
                "id": len(self.rows),
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": rle,
                **more,
            }
        )


def _truths(data: CocoData) -> _Annotations:
    truths = _Annotations([], [])
    for image in data.images:
        for row, annotation in enumerate(image.annotations):
            truths.add(
                image.id,
                row,
                data.categories[annotation.category].id,
                rle_from_segmentation(annotation.segmentation, (image.height, image.width)),
                # Of the outline, as in COCO's own files: it decides small, medium, large.
                area=annotation.area,
                iscrowd=int(annotation.crowd),
            )
    return truths


def _detections(data: CocoData, predictions: Mapping[int, Instances]) -> _Annotations:
    known = {category.id for category in data.categories}
    detections = _Annotations([], [])
    for image in data.images:
        instances = predictions.get(image.id)
        if instances is None:
            continue
        rles = instances.rle()
        for row, (rle, area, category_id, score) in enumerate(
            zip(
                rles,
                rle_areas(rles),
                instances.category_ids.tolist(),
                instances.scores.tolist(),
                strict=True,
            )
        ):
            if category_id in known:
                detections.add(image.id, row, category_id, rle, area=area, score=score)
    return detections


def _matches(
    scorer: hotcoco.COCOeval, truths: _Annotations, detections: _Annotations
) -> dict[str, NDArray[Any]]:
    """Return the fields of CocoScores that are about single detections."""
    found = scorer.image_diagnostics(iou_thr=0.5, score_thr=0.0)
    # Ordered by id, and so by image; those that crowd regions forgive have no status.
    place_D = [detection_id - 1 for detection_id in sorted(found["dt_status"])]
    matched = {place: found["dt_match"].get(place + 1, 0) - 1 for place in place_D}
    annotations = [detections.annotations[place] for place in place_D]
    iou_of: dict[int, float] = {}
    for _, places in groupby(place_D, lambda place: detections.annotations[place]["image_id"]):
        pairs = [(place, matched[place]) for place in places if matched[place] >= 0]
        iou_NN = rle_iou(
            [detections.annotations[place]["segmentation"] for place, _ in pairs],
            [truths.annotations[owner]["segmentation"] for _, owner in pairs],
        )
        iou_of |= {place: float(iou_NN[at, at]) for at, (place, _) in enumerate(pairs)}
    return {
        "image_D": np.array([one["image_id"] for one in annotations], dtype=np.int64),
        "row_D": np.array([detections.rows[place] for place in place_D], dtype=np.int64),
        "score_D": np.array([one["score"] for one in annotations], dtype=np.float64),
        "object_D": np.array(
            [truths.rows[owner] if owner >= 0 else -1 for owner in matched.values()],
            dtype=np.int64,
        ),
        "iou_D": np.array([iou_of.get(place, 0.0) for place in place_D], dtype=np.float64),
    }
