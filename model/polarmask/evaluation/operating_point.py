"""What a score threshold does: precision, recall, F1, and which objects are missed.

Dimension key
    D: detections    S: score thresholds `THRESHOLDS_S`    Z: object sizes between `SIDE_EDGES`
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import CocoData
from polarmask.evaluation.coco_ap import CocoScores
from polarmask.evaluation.object_sizes import SIDE_EDGES

THRESHOLDS_S: NDArray[np.float64] = np.arange(101) / 100


@dataclass(frozen=True, eq=False)
class ThresholdCurves:
    """Counts at IoU .5, all categories together, if only detections of a score or more count."""

    precision_S: NDArray[np.float64]
    """In [0, 1]; 1 where no detection is left."""
    recall_S: NDArray[np.float64]
    """In [0, 1]; 0 without objects."""
    f1_S: NDArray[np.float64]
    """In [0, 1]; 0 without objects."""
    best_score: float
    """Threshold with the best F1: the score of a detection, between two of the steps; 1 without
    true detections."""


def threshold_curves(scores: CocoScores, num_objects: int) -> ThresholdCurves:
    """Return precision, recall and F1 over the score threshold.

    Args:
        scores: Matches of detections with objects.
        num_objects: Objects, crowd regions not counted.
    """
    true_D = scores.iou_D > 0
    found_S = _count_from(scores.score_D)
    true_S = _count_from(scores.score_D[true_D])
    return ThresholdCurves(
        precision_S=np.where(found_S > 0, true_S / np.maximum(found_S, 1), 1.0),
        recall_S=true_S / max(1, num_objects),
        f1_S=2 * true_S / np.maximum(found_S + num_objects, 1),
        best_score=_best_f1_score(scores.score_D, true_D, num_objects),
    )


def _count_from(score_D: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many scores are at least as high as each threshold."""
    below_S = np.searchsorted(np.sort(score_D), THRESHOLDS_S, side="left")
    return len(score_D) - below_S.astype(np.int64)


def _best_f1_score(
    score_D: NDArray[np.float64], true_D: NDArray[np.bool_], num_objects: int
) -> float:
    order_D = np.argsort(-score_D, kind="stable")
    score_D, hits_D = score_D[order_D], np.cumsum(true_D[order_D])
    f1_D = 2 * hits_D / (np.arange(1, len(order_D) + 1) + num_objects)
    # A threshold keeps or drops equal scores together, so only the last of them counts.
    f1_D[:-1][score_D[1:] == score_D[:-1]] = 0
    return float(score_D[f1_D.argmax()]) if f1_D.any() else 1.0


def found_by_size(data: CocoData, scores: CocoScores, min_score: float) -> NDArray[np.int64]:
    """Count objects by size at a score threshold; crowd regions are left out.

    Returns:
        (3, Z): found with a mask IoU of .75 or more, found with .5 to .75, missed.
    """
    kept_D = (scores.score_D >= min_score) & (scores.object_D >= 0)
    iou_of = {
        (image, row): iou
        for image, row, iou in zip(
            scores.image_D[kept_D].tolist(),
            scores.object_D[kept_D].tolist(),
            scores.iou_D[kept_D].tolist(),
            strict=True,
        )
    }
    sides: tuple[list[float], ...] = ([], [], [])
    for image in data.images:
        for row, annotation in enumerate(image.annotations):
            if not annotation.crowd:
                iou = iou_of.get((image.id, row), 0.0)
                kind = 0 if iou >= 0.75 else 1 if iou > 0 else 2
                sides[kind].append(float(np.sqrt(annotation.area)))
    return np.stack([np.histogram(values, bins=SIDE_EDGES)[0] for values in sides])
