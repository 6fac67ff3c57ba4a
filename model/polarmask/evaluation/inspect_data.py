"""Inspect a data set before paying for GPUs.

How large the objects are, which level of the network learns them, how well rays can describe them,
and which settings follow.

Dimension key
    G: objects
"""

from dataclasses import dataclass, replace

import numpy as np

from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData
from polarmask.data.summary import SplitSummary, results_cut
from polarmask.evaluation.evaluate import Evaluation, evaluate_predictions
from polarmask.evaluation.exact_rays import draw_from_rays
from polarmask.evaluation.object_sizes import SIDE_EDGES
from polarmask.evaluation.recommend import (
    RAY_COUNTS,
    Recommendation,
    object_side,
    recommend_for,
    spread,
)
from polarmask.inference.instances import Instances
from polarmask.labels.image_labels import label_image
from polarmask.system.progress_bar import progress_bar


@dataclass(frozen=True, eq=False)
class UpperBound:
    """Scores of a perfect network: every centre and every ray exact."""

    num_rays: int
    mean_iou: float
    """Mask IoU, mean over objects, in [0, 1]."""
    mask_ap: float
    """COCO mask AP in [0, 1], all instances scored alike; NaN without objects."""
    mask_ap50: float
    mask_ap75: float


@dataclass(frozen=True, eq=False)
class Levels:
    """How the label rules of a run assign objects to its levels."""

    strides: tuple[int, ...]
    instances: tuple[int, ...]
    """Objects that each level learns; one on two levels counts on both."""
    positives: tuple[int, ...]
    """Locations that learn an object."""
    without_positive: float
    """Share of the objects that no location learns, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Results for one split."""

    split: str
    images: int
    """Number inspected; of large data evenly spread ones."""
    total_images: int
    instances: int
    crowds: int
    in_parts: int
    """Objects with several parts; `labels.parts` decides whether one or all are learned."""
    side_quantiles: tuple[float, float, float]
    """10, 50 and 90 percent of the objects are below this square root of area, network pixels."""
    size_counts: tuple[int, ...]
    """Objects between the `SIDE_EDGES`, in pixels of the network's input."""
    levels: Levels
    bounds: tuple[UpperBound, ...]
    """For `RAY_COUNTS`."""
    evaluation: Evaluation
    """Of the upper bound with the run's ray count."""
    predictions: dict[int, Instances]
    """The objects redrawn from exact rays, by image id."""
    worst: tuple[tuple[int, int, float], ...]
    """Image id, row in its predictions and mask IoU of the objects with the lowest IoU."""
    recommendation: Recommendation
    recommended_levels: Levels
    data: SplitSummary
    """What was left out, and which of the images hold more objects than the run returns."""


def inspect_data(data: CocoData, config: RunConfig, *, max_images: int = 2000) -> Inspection:
    """Inspect a split as a run with this config would see it.

    Args:
        data: Loaded split with at least one object.
        config: Input size, strides, ranges and ray count.
        max_images: Of larger data, this many images are taken, evenly spread.
    """
    part = replace(data, images=tuple(spread(data.images, max_images)))
    objects = [(image, a) for image in part.images for a in image.annotations if a.parts]
    side_G = np.array([object_side(image, a, config) for image, a in objects])
    drawn = {
        num_rays: draw_from_rays(part, num_rays, config.labels.parts)
        for num_rays in dict.fromkeys((*RAY_COUNTS, config.model.num_rays))
    }
    limit = config.postprocess.max_instances
    bounds = tuple(_bound(part, num_rays, *drawn[num_rays], limit) for num_rays in RAY_COUNTS)
    predictions, iou_of = drawn[config.model.num_rays]
    recommendation = recommend_for(data, config)
    ranked = sorted((iou, image, row) for (image, row), iou in iou_of.items())
    return Inspection(
        split=data.split,
        images=len(part.images),
        total_images=len(data.images),
        instances=len(objects),
        crowds=sum(a.crowd for image in part.images for a in image.annotations),
        in_parts=sum(len(a.parts) > 1 for _, a in objects),
        side_quantiles=tuple(np.quantile(side_G, (0.1, 0.5, 0.9)).tolist()),
        size_counts=tuple(np.histogram(side_G, bins=SIDE_EDGES)[0].tolist()),
        levels=_levels(part, config),
        bounds=bounds,
        evaluation=evaluate_predictions(part, _best(predictions, iou_of, limit)),
        predictions=predictions,
        worst=tuple((image, row, iou) for iou, image, row in ranked),
        recommendation=recommendation,
        recommended_levels=_levels(part, recommendation.apply(config)),
        data=data.summary.plus(
            results_cut(f"image {image.id} ({image.file_name})", limit)
            for image in part.images
            if image.id in predictions and len(predictions[image.id]) > limit
        ),
    )


def _bound(
    data: CocoData,
    num_rays: int,
    predictions: dict[int, Instances],
    iou_of: dict[tuple[int, int], float],
    limit: int,
) -> UpperBound:
    result = evaluate_predictions(data, _best(predictions, iou_of, limit))
    return UpperBound(
        num_rays=num_rays,
        mean_iou=float(np.mean(list(iou_of.values()))),
        mask_ap=result.mask_ap,
        mask_ap50=result.mask_ap50,
        mask_ap75=result.mask_ap75,
    )


def _best(
    predictions: dict[int, Instances], iou_of: dict[tuple[int, int], float], limit: int
) -> dict[int, Instances]:
    """Return the instances of each image that fit best, as many as a model returns."""
    return {
        image_id: found.select(
            sorted(range(len(found)), key=lambda row: -iou_of[image_id, row])[:limit]
        )
        if len(found) > limit
        else found
        for image_id, found in predictions.items()
    }


def _levels(data: CocoData, config: RunConfig) -> Levels:
    """Make the labels of every image, and count."""
    strides = config.model.strides
    instances = np.zeros(len(strides), dtype=np.int64)
    positives = np.zeros(len(strides), dtype=np.int64)
    objects = learned = 0
    for image in progress_bar(data.images, desc="labels", unit="image"):
        labels = label_image(image, config)
        level_P = labels.location_P3[:, 0]
        pair_K2 = np.unique(np.stack([level_P, labels.object_P], axis=1), axis=0)
        instances += np.bincount(pair_K2[:, 0], minlength=len(strides))
        positives += np.bincount(level_P, minlength=len(strides))
        objects += len(labels.category_G)
        learned += len(np.unique(labels.object_P))
    return Levels(
        strides=strides,
        instances=tuple(instances.tolist()),
        positives=tuple(positives.tolist()),
        without_positive=1 - learned / objects if objects else 0.0,
    )
