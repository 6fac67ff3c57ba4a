"""Detections against ground truth by COCO's rules: hotcoco matches and draws the curves.

It gives pycocotools' numbers to the last bit and takes a tenth of its time (ADR 0018); a test has
pycocotools itself as the referee.

Dimension key
    T: IoU thresholds .5, .55, ... .95    Q: recall 0, .01, ... 1    K: categories of the data
    A: object sizes (all, small, medium, large)    D: detections
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import Annotation, CocoData
from polarmask.geometry.masks import Rle, rle_from_segmentation, rle_iou
from polarmask.inference.instances import Instances

_DETECTION_LIMITS = (100, 500, 1000, 5000, 10_000)

_FIRST_ID = 1
"""Images, categories, objects and detections get new ids: those of the data may have any size, and
COCO's rules take a match with id 0 for none. Order stays, because it decides between equal scores.
"""


@dataclass(frozen=True, eq=False)
class CocoScores:
    """Matches of detections with objects, and precision and recall."""

    precision_TQKA: NDArray[np.float64]
    """-1 for categories without objects of the size."""
    recall_TKA: NDArray[np.float64]
    """Highest recall; -1 as above."""
    max_detections: int
    """Detections per image and category that count."""
    image_D: NDArray[np.int64]
    """Image id of each detection; those ignored inside crowd regions are left out."""
    row_D: NDArray[np.int64]
    """Row in the image's `Instances`."""
    score_D: NDArray[np.float64]
    object_D: NDArray[np.int64]
    """Index in the image's annotations of the object matched at IoU .5, or -1."""
    iou_D: NDArray[np.float64]
    """Mask IoU with that object; 0 for a false detection."""
    scorer: hotcoco.COCOeval

    def confusion(self, min_score: float) -> NDArray[np.int64]:
        """Match detections to objects of any category at IoU .5.

        Returns:
            (K + 1, K + 1): true by found category; last row: false, last column: missed. Empty,
            (0, 0), for a single category.
        """
        if self.precision_TQKA.shape[2] < 2:
            return np.zeros((0, 0), dtype=np.int64)
        found = self.scorer.confusion_matrix(
            iou_thr=0.5, max_det=self.max_detections, min_score=min_score
        )
        return np.asarray(found["matrix"], dtype=np.int64)


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
    limit = next((limit for limit in _DETECTION_LIMITS if limit >= most), most)
    scorer = _scorer(data, truths, detections)
    scorer.params.max_dets = [limit]
    scorer.evaluate()
    scorer.accumulate()
    curves = scorer.eval
    assert curves is not None  # noqa: S101  # accumulate has made them
    # No score is above 2, so the search for label mistakes, which takes long, finds nothing to do.
    found = scorer.image_diagnostics(iou_thr=0.5, score_thr=2.0)
    # Detections ignored inside crowd regions have no status.
    place_D = np.sort(np.array([*found["dt_status"]], dtype=np.int64)) - _FIRST_ID
    truth_of = {key - _FIRST_ID: value - _FIRST_ID for key, value in found["dt_match"].items()}
    matched_D = np.array([truth_of.get(place, -1) for place in place_D.tolist()], dtype=np.int64)
    row_T = np.array([*truths.row, -1])
    return CocoScores(
        precision_TQKA=curves["precision"][..., 0],
        recall_TKA=curves["recall"][..., 0],
        max_detections=limit,
        image_D=np.array(detections.image, dtype=np.int64)[place_D],
        row_D=np.array(detections.row, dtype=np.int64)[place_D],
        score_D=np.array(detections.score, dtype=np.float64)[place_D],
        object_D=row_T[matched_D],
        iou_D=_ious(detections, place_D.tolist(), truths, matched_D.tolist()),
        scorer=scorer,
    )


@dataclass(frozen=True)
class _Masks:
    """Columns of objects or detections, image after image."""

    image: list[int] = field(default_factory=list)
    """Id in the data."""
    row: list[int] = field(default_factory=list)
    """Index within the image."""
    category: list[int] = field(default_factory=list)
    """Index in the data's categories."""
    rle: list[Rle] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    """Of detections."""

    def extend(
        self, image_id: int, rows: list[int], categories: list[int], rles: list[Rle]
    ) -> None:
        self.image.extend([image_id] * len(rows))
        self.row.extend(rows)
        self.category.extend(categories)
        self.rle.extend(rles)


def _truths(data: CocoData) -> _Masks:
    truths = _Masks()
    for image in data.images:
        truths.extend(
            image.id,
            list(range(len(image.annotations))),
            [annotation.category for annotation in image.annotations],
            [
                rle_from_segmentation(annotation.segmentation, (image.height, image.width))
                for annotation in image.annotations
            ],
        )
    return truths


def _detections(data: CocoData, predictions: Mapping[int, Instances]) -> _Masks:
    index_of = {category.id: index for index, category in enumerate(data.categories)}
    detections = _Masks()
    for image in data.images:
        instances = predictions.get(image.id)
        if instances is None:
            continue
        rles, categories = instances.rle(), instances.category_ids.tolist()
        rows = [row for row, category_id in enumerate(categories) if category_id in index_of]
        detections.extend(
            image.id,
            rows,
            [index_of[categories[row]] for row in rows],
            [rles[row] for row in rows],
        )
        detections.score.extend(instances.scores[rows].tolist())
    return detections


def _scorer(data: CocoData, truths: _Masks, detections: _Masks) -> hotcoco.COCOeval:
    sizes: dict[int, tuple[int, int]] = {}
    annotations: list[Annotation] = []
    for image in data.images:
        sizes[image.id] = (image.height, image.width)
        annotations += image.annotations
    new_id = {image_id: new for new, image_id in enumerate(sorted(sizes), start=_FIRST_ID)}
    truth = hotcoco.COCO(
        {
            "images": [
                {"id": new_id[image_id], "height": height, "width": width}
                for image_id, (height, width) in sizes.items()
            ],
            "categories": [
                {"id": index + _FIRST_ID, "name": category.name}
                for index, category in enumerate(data.categories)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": new_id[image_id],
                    "category_id": category + _FIRST_ID,
                    "segmentation": rle,
                    # Of the outline, as in COCO's own files: it decides small, medium, large.
                    "area": annotation.area,
                    "iscrowd": int(annotation.crowd),
                }
                for number, (image_id, category, rle, annotation) in enumerate(
                    zip(truths.image, truths.category, truths.rle, annotations, strict=True),
                    start=_FIRST_ID,
                )
            ],
        }
    )
    rles: list[Any] = list(detections.rle)  # hotcoco's types do not accept a TypedDict
    # Boxes do not matter when masks are compared; ids follow in this order.
    table_D7 = np.zeros((len(detections.rle), 7))
    table_D7[:, 0] = [new_id[image_id] for image_id in detections.image]
    table_D7[:, 5] = detections.score
    table_D7[:, 6] = np.array(detections.category) + _FIRST_ID
    found = truth.load_res(table_D7, segmentation=rles)
    found.update_anns(
        ids=np.arange(_FIRST_ID, _FIRST_ID + len(table_D7)),
        area=hotcoco.mask.area(rles).astype(np.float64),
    )
    return hotcoco.COCOeval(truth, found, "segm")


def _ious(
    detections: _Masks, places: list[int], truths: _Masks, matches: list[int]
) -> NDArray[np.float64]:
    """Return the mask IoU of each detection with its matched object, 0 without one."""
    iou_D = np.zeros(len(places))
    matched = [at for at, match in enumerate(matches) if match >= 0]
    for _, group in groupby(matched, lambda at: detections.image[places[at]]):
        own = list(group)
        iou_NN = rle_iou(
            [detections.rle[places[at]] for at in own], [truths.rle[matches[at]] for at in own]
        )
        iou_D[own] = iou_NN.diagonal()
    return iou_D
