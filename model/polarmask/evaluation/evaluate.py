"""Evaluate a model on a split: COCO mask AP, and the other numbers of the evaluation page.

Dimension key
    T: IoU thresholds .5, .55, ... .95    Q: recall 0, .01, ... 1    K: categories of the data
    A: object sizes (all, small, medium, large)    D: detections    Z: sizes between `SIDE_EDGES`
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import CocoData, load_coco
from polarmask.data.match_categories import match_categories
from polarmask.data.preprocess import resized_hw
from polarmask.data.summary import Problem, SplitSummary, results_cut
from polarmask.evaluation.coco_ap import CocoScores, score_predictions
from polarmask.evaluation.operating_point import found_by_size, threshold_curves
from polarmask.evaluation.predict_split import predict_split
from polarmask.inference.instances import Instances
from polarmask.inference.predictor import Predictor
from polarmask.system.distributed import gather_to_first, is_first, rank, world_size

HISTOGRAM_BINS = 20
"""Of the scores in [0, 1]."""

_IOU_50, _IOU_75 = 0, 5
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)


@dataclass(frozen=True)
class CategoryResult:
    """One category that has objects in the split."""

    category_id: int
    name: str
    instances: int
    ap: float
    ap50: float


@dataclass(frozen=True)
class ImageResult:
    """One image at the operating point; a detection is true if its mask IoU reaches 0.5."""

    image_id: int
    file_name: str
    true_positives: int
    false_positives: int
    false_negatives: int
    quality: float
    """Panoptic quality in [0, 1]: IoU of true positives over objects and false positives; NaN
    where there is neither object nor detection."""

    @property
    def objects(self) -> int:
        """Number of objects, crowd regions not counted."""
        return self.true_positives + self.false_negatives

    @property
    def detections(self) -> int:
        """Number of detections, those inside crowd regions not counted."""
        return self.true_positives + self.false_positives


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Mask AP by COCO's rules, all in [0, 1]; NaN where the split holds no such object."""

    split: str
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    mask_ap_small: float
    """Objects under 32x32 pixels."""
    mask_ap_medium: float
    mask_ap_large: float
    """Objects over 96x96 pixels."""
    mask_ar: float
    """Average recall with up to `max_detections`."""
    max_detections: int
    """Detections per image and category that count."""
    num_images: int
    num_instances: int
    """Objects, crowd regions not counted."""
    operating_score: float
    """Score threshold with the best F1 at IoU 0.5; the counts per image are taken there."""
    per_category: tuple[CategoryResult, ...]
    per_image: tuple[ImageResult, ...]
    precision_recall: NDArray[np.float64]
    """(3, 101): precision at IoU .5, .75 and averaged, at recall 0, 0.01, ... 1."""
    score_histogram: NDArray[np.int64]
    """(2, HISTOGRAM_BINS): true and false detections at IoU .5 by score."""
    thresholds: NDArray[np.float64]
    """(3, 101): precision, recall and F1 at IoU .5 if detections of a score of at least 0, 0.01,
    ... 1 count."""
    found_by_size: NDArray[np.int64]
    """(3, Z): objects between the `SIDE_EDGES` in pixels of the image, found with IoU of .75 or
    more, found with .5 to .75, and missed, at the operating point."""
    confusion: NDArray[np.int64]
    """(K + 1, K + 1): true by found category at the operating point, in the order of the data's
    categories; last row: false, last column: missed. Empty for one category."""
    data: SplitSummary
    """What was evaluated, and what was left out of it."""

    def __repr__(self) -> str:
        """Return the numbers that are asked for first."""
        return (
            f"Evaluation(split={self.split!r}, mask_ap={self.mask_ap:.4f}, "
            f"mask_ap50={self.mask_ap50:.4f}, mask_ap75={self.mask_ap75:.4f}, "
            f"num_images={self.num_images}, num_instances={self.num_instances})"
        )

    @property
    def best_f1(self) -> float:
        """F1 at the operating score; 0 without true detections."""
        true = sum(image.true_positives for image in self.per_image)
        others = sum(image.false_positives + image.false_negatives for image in self.per_image)
        return 2 * true / max(2 * true + others, 1)

    def to_json(self) -> str:
        """Return strict JSON; NaN becomes null."""
        plain = asdict(self) | {"data": self.data.to_json()}
        return json.dumps(_plain(plain), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Evaluation":
        """Read what `to_json` returned."""
        values = _with_nan(json.loads(text))
        confusion = values["confusion"]
        values |= {
            "per_category": tuple(CategoryResult(**_with_nan(x)) for x in values["per_category"]),
            "per_image": tuple(ImageResult(**_with_nan(x)) for x in values["per_image"]),
            "precision_recall": np.array(values["precision_recall"], dtype=np.float64),
            "score_histogram": np.array(values["score_histogram"], dtype=np.int64),
            "thresholds": np.array(values["thresholds"], dtype=np.float64),
            "found_by_size": np.array(values["found_by_size"], dtype=np.int64),
            "confusion": np.array(confusion, dtype=np.int64).reshape(2 * (len(confusion),)),
            "data": SplitSummary.from_json(values["data"]),
        }
        return cls(**values)


def _with_nan(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in plain.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def evaluate(predictor: Predictor, data: Path, split: str = "val") -> Evaluation:
    """Evaluate a model on a split of a COCO folder.

    Raises:
        DataError: Nothing usable in the split, or its categories are not those of the model.
    """
    images = predictor.card.config.input
    return evaluate_split(predictor, load_coco(data, split, check_pixels=True, config=images))[0]


def evaluate_split(
    predictor: Predictor,
    data: CocoData,
    *,
    predict: Callable[[Predictor, CocoData], dict[int, Instances]] | None = None,
) -> tuple[Evaluation, dict[int, Instances]]:
    """Evaluate a model on a loaded split; return the instances of each image id, too.

    Args:
        predictor: The model.
        data: The split.
        predict: Finds the instances; None: `predict_split`.

    Raises:
        DataError: The split's categories are not those of the model, or an image can't be decoded.
    """
    data = match_model(predictor, data)
    predictions = (predict or predict_split)(predictor, data)
    return _evaluate_matched(predictor, data, predictions), predictions


def evaluate_together(
    predictor: Predictor, data: CocoData, *, skip_unreadable: bool = False
) -> tuple[Evaluation, dict[int, Instances]] | None:
    """Do as `evaluate_split`, with each process of a group predicting every n-th image.

    Args:
        predictor: The model.
        data: The split.
        skip_unreadable: Evaluate without the images that can't be decoded, if there are any.

    Returns:
        None on all processes but the first.
    """
    data = match_model(predictor, data)
    part = replace(data, images=data.images[rank() :: world_size()])
    own = predict_split(predictor, part, skip_unreadable=skip_unreadable)
    for instances in own.values():
        instances.rle()  # cached here, so that the first process need not make them all
    predictions = {key: one for part in gather_to_first(own) for key, one in part.items()}
    if not is_first():
        return None
    if skip_unreadable:
        data = replace(data, images=tuple(one for one in data.images if one.id in predictions))
    return _evaluate_matched(predictor, data, predictions), predictions


def match_model(predictor: Predictor, data: CocoData) -> CocoData:
    """Compare a split's categories with the model's; see `match_categories`."""
    return match_categories(predictor.card.categories, data, known_by="the model")


def _evaluate_matched(
    predictor: Predictor, data: CocoData, predictions: Mapping[int, Instances]
) -> Evaluation:
    """Evaluate, and note in the summary where the model's limit of instances counts."""
    evaluation = evaluate_predictions(data, predictions)
    limit = predictor.card.config.postprocess.max_instances
    notes = [
        results_cut(f"image {image.image_id} ({image.file_name})", limit)
        for image in evaluation.per_image
        if _is_cut(predictions[image.image_id], image, evaluation.operating_score)
    ]
    notes += _shrunk_away(predictor, data)
    return replace(evaluation, data=evaluation.data.plus(notes))


def _is_cut(found: Instances, image: ImageResult, operating_score: float) -> bool:
    """Return whether a limit left out instances that might score enough to matter."""
    return found.cut_below > 0 and (
        found.cut_below >= operating_score or image.objects > len(found)
    )


def _shrunk_away(predictor: Predictor, data: CocoData) -> Iterator[Problem]:
    """Yield the images of which objects are smaller than a location once they are shrunk."""
    config = predictor.card.config
    least = config.model.strides[0]
    for image in data.images:
        hw = (image.height, image.width)
        if max(hw) > config.input.max_side and predictor.tile_side(hw) is None:
            rows, columns = resized_hw(hw, config.input)
            scale = rows * columns / (hw[0] * hw[1])
            small = sum(a.area * scale < least**2 for a in image.annotations if not a.crowd)
            if small:
                yield Problem(
                    "image",
                    "shrunk",
                    f"image {image.id} ({image.file_name})",
                    f"{small} of {len(image.annotations)} objects are smaller than {least} pixels "
                    "in the network's input; raise input.max_side, or evaluate in tiles",
                    kept=True,
                )


def evaluate_predictions(data: CocoData, predictions: Mapping[int, Instances]) -> Evaluation:
    """Evaluate predictions, given by image id; an image without an entry has no detections."""
    scores = score_predictions(data, predictions)
    precision_TQKA = scores.precision_TQKA
    curves = threshold_curves(scores, _count_objects(data))
    operating_score = curves.best_score
    is_true_D = scores.iou_D > 0
    return Evaluation(
        split=data.split,
        mask_ap=_mean(precision_TQKA[..., _ALL]),
        mask_ap50=_mean(precision_TQKA[_IOU_50, ..., _ALL]),
        mask_ap75=_mean(precision_TQKA[_IOU_75, ..., _ALL]),
        mask_ap_small=_mean(precision_TQKA[..., _SMALL]),
        mask_ap_medium=_mean(precision_TQKA[..., _MEDIUM]),
        mask_ap_large=_mean(precision_TQKA[..., _LARGE]),
        mask_ar=_mean(scores.recall_TKA[..., _ALL]),
        max_detections=scores.max_detections,
        num_images=len(data.images),
        num_instances=_count_objects(data),
        operating_score=operating_score,
        per_category=_per_category(data, precision_TQKA[..., _ALL]),
        per_image=_per_image(data, scores, operating_score),
        precision_recall=_precision_recall(precision_TQKA[..., _ALL]),
        score_histogram=np.stack(
            [
                np.histogram(scores.score_D[chosen_D], bins=HISTOGRAM_BINS, range=(0, 1))[0]
                for chosen_D in (is_true_D, ~is_true_D)
            ]
        ),
        thresholds=np.stack([curves.precision_S, curves.recall_S, curves.f1_S]),
        found_by_size=found_by_size(data, scores, operating_score),
        confusion=scores.confusion(operating_score),
        data=data.summary,
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of values other than -1, which means absent; NaN if there are none."""
    present = values[values > -1]
    return float(present.mean()) if present.size else math.nan


def _count_objects(data: CocoData) -> int:
    return sum(not annotation.crowd for image in data.images for annotation in image.annotations)


def _per_category(data: CocoData, precision_TQK: NDArray[np.float64]) -> tuple[CategoryResult, ...]:
    instances = Counter(
        annotation.category
        for image in data.images
        for annotation in image.annotations
        if not annotation.crowd
    )
    return tuple(
        CategoryResult(
            category_id=category.id,
            name=category.name,
            instances=instances[index],
            ap=_mean(precision_TQK[:, :, index]),
            ap50=_mean(precision_TQK[_IOU_50, :, index]),
        )
        for index, category in enumerate(data.categories)
        if instances[index]
    )


def _per_image(
    data: CocoData, scores: CocoScores, operating_score: float
) -> tuple[ImageResult, ...]:
    ious_of_image: dict[int, list[float]] = defaultdict(list)
    kept_D = scores.score_D >= operating_score
    for image_id, iou in zip(
        scores.image_D[kept_D].tolist(), scores.iou_D[kept_D].tolist(), strict=True
    ):
        ious_of_image[image_id].append(iou)
    results = []
    for image in data.images:
        ious = ious_of_image[image.id]
        true = sum(iou > 0 for iou in ious)
        objects = sum(not annotation.crowd for annotation in image.annotations)
        weight = (len(ious) + objects) / 2
        results.append(
            ImageResult(
                image_id=image.id,
                file_name=image.file_name,
                true_positives=true,
                false_positives=len(ious) - true,
                false_negatives=objects - true,
                quality=sum(ious) / weight if weight else math.nan,
            )
        )
    return tuple(results)


def _precision_recall(precision_TQK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean curves of the categories with objects; NaN if there are none."""
    present_TQK = precision_TQK[:, :, (precision_TQK > -1).all(axis=(0, 1))]
    if not present_TQK.size:
        return np.full((3, precision_TQK.shape[1]), math.nan)
    curve_TQ = present_TQK.mean(axis=2)
    return np.stack([curve_TQ[_IOU_50], curve_TQ[_IOU_75], curve_TQ.mean(axis=0)])
