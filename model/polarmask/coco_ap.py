"""Detections against ground truth by COCO's rules: pycocotools matches and draws the curves.

Its `summarize` is not used, because it insists on at most 100 detections an image and answers -1
otherwise.

Dimension key
    T: IoU thresholds .5, .55, ... .95    Q: recall 0, .01, ... 1    K: categories of the data
    A: object sizes (all, small, medium, large)    D: detections
"""

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polarmask.coco import CocoData
from polarmask.inference import Instances
from polarmask.masks import rle_area, rle_from_segmentation

_DETECTION_LIMITS = (100, 500, 1000, 5000, 10_000)


@dataclass(frozen=True, eq=False)
class CocoScores:
    """What pycocotools found."""

    precision_TQKA: NDArray[np.float64]
    """-1 for categories without objects of the size."""
    recall_TKA: NDArray[np.float64]
    """Highest recall; -1 as above."""
    max_detections: int
    """Detections per image and category that count."""
    image_D: NDArray[np.int64]
    """Image id of each detection; those forgiven inside crowd regions are left out."""
    score_D: NDArray[np.float64]
    iou_D: NDArray[np.float64]
    """Mask IoU with the object it is matched to at threshold .5; 0 for a false detection."""


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
    referee = COCOeval(iouType="segm")
    referee.params.maxDets = [next(limit for limit in _DETECTION_LIMITS if limit >= most)]
    # pycocotools prints timings, which belong to nobody's output.
    with contextlib.redirect_stdout(io.StringIO()):
        referee.cocoGt = _ground_truth(data)
        referee.cocoDt = _detections(data, predictions)
        referee.params.imgIds = [image.id for image in data.images]
        referee.params.catIds = [category.id for category in data.categories]
        referee.evaluate()
        referee.accumulate()
    image_D, score_D, iou_D = _matches(referee)
    return CocoScores(
        precision_TQKA=referee.eval["precision"][..., 0],
        recall_TKA=referee.eval["recall"][..., 0],
        max_detections=referee.params.maxDets[0],
        image_D=image_D,
        score_D=score_D,
        iou_D=iou_D,
    )


def _ground_truth(data: CocoData) -> COCO:
    # Numbered anew: pycocotools takes a match with the object of id 0 for none.
    ids = count(1)
    annotations = []
    for image in data.images:
        for annotation in image.annotations:
            image_hw = (image.height, image.width)
            annotations.append(
                {
                    "id": next(ids),
                    "image_id": image.id,
                    "category_id": data.categories[annotation.category].id,
                    "segmentation": rle_from_segmentation(annotation.segmentation, image_hw),
                    # Of the outline, as in COCO's own files: it decides small, medium, large.
                    "area": annotation.area,
                    "iscrowd": int(annotation.crowd),
                }
            )
    return _index(data, annotations)


def _detections(data: CocoData, predictions: Mapping[int, Instances]) -> COCO:
    ids = count(1)
    annotations = []
    for image in data.images:
        instances = predictions.get(image.id)
        if instances is None:
            continue
        for rle, score, category_id in zip(
            instances.rle(), instances.scores.tolist(), instances.category_ids.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": next(ids),
                    "image_id": image.id,
                    "category_id": category_id,
                    "segmentation": rle,
                    "area": rle_area(rle),
                    "score": score,
                }
            )
    return _index(data, annotations)


def _index(data: CocoData, annotations: list[dict[str, Any]]) -> COCO:
    index = COCO()
    index.dataset = {
        "images": [
            {"id": image.id, "height": image.height, "width": image.width} for image in data.images
        ],
        "categories": [{"id": category.id} for category in data.categories],
        "annotations": annotations,
    }
    index.createIndex()
    return index


def _matches(
    referee: COCOeval,
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return image id, score and matched IoU of each detection at threshold .5, for any size."""
    everything = list(referee.params.areaRng[0])
    images, scores, ious = [], [], []
    for found in referee.evalImgs:
        if found is None or list(found["aRng"]) != everything:
            continue
        place = (found["image_id"], found["category_id"])
        column = {truth["id"]: index for index, truth in enumerate(referee._gts[place])}
        for row, (score, match, ignored) in enumerate(
            zip(found["dtScores"], found["dtMatches"][0], found["dtIgnore"][0], strict=True)
        ):
            if ignored:
                continue
            images.append(place[0])
            scores.append(score)
            ious.append(referee.ious[place][row, column[int(match)]] if match else 0.0)
    return (
        np.array(images, dtype=np.int64),
        np.array(scores, dtype=float),
        np.array(ious, dtype=float),
    )
