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
    matches = _matches(referee)
    return CocoScores(
        precision_TQKA=referee.eval["precision"][..., 0],
        recall_TKA=referee.eval["recall"][..., 0],
        max_detections=referee.params.maxDets[0],
        image_D=np.array([match[0] for match in matches], dtype=np.int64),
        row_D=np.array([match[1] for match in matches], dtype=np.int64),
        score_D=np.array([match[2] for match in matches], dtype=np.float64),
        object_D=np.array([match[3] for match in matches], dtype=np.int64),
        iou_D=np.array([match[4] for match in matches], dtype=np.float64),
    )


def _ground_truth(data: CocoData) -> COCO:
    # Numbered anew: pycocotools takes a match with the object of id 0 for none.
    ids = count(1)
    annotations = []
    for image in data.images:
        for row, annotation in enumerate(image.annotations):
            image_hw = (image.height, image.width)
            annotations.append(
                {
                    "id": next(ids),
                    "row": row,
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
        for row, rle in enumerate(instances.rle()):
            annotations.append(
                {
                    "id": next(ids),
                    "row": row,
                    "image_id": image.id,
                    "category_id": int(instances.category_ids[row]),
                    "segmentation": rle,
                    "area": rle_area(rle),
                    "score": float(instances.scores[row]),
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


def _matches(referee: COCOeval) -> list[tuple[int, int, float, int, float]]:
    """Return image id, row, score, object and IoU of each detection, for objects of any size."""
    everything = list(referee.params.areaRng[0])
    matches = []
    for found in referee.evalImgs:
        if found is None or list(found["aRng"]) != everything:
            continue
        place = (found["image_id"], found["category_id"])
        objects = referee._gts[place]
        column_of = {truth["id"]: column for column, truth in enumerate(objects)}
        for rank, (detection, score, match, ignored) in enumerate(
            zip(
                found["dtIds"],
                found["dtScores"],
                found["dtMatches"][0].astype(int).tolist(),
                found["dtIgnore"][0],
                strict=True,
            )
        ):
            if ignored:
                continue
            row = referee.cocoDt.anns[detection]["row"]
            if match:
                column = column_of[match]
                iou = float(referee.ious[place][rank, column])
                matches.append((place[0], row, score, objects[column]["row"], iou))
            else:
                matches.append((place[0], row, score, -1, 0.0))
    return matches
