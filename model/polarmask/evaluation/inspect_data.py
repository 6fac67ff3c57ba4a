"""Inspect a data set before paying for GPUs.

How large the objects are, which level of the network learns them, how well rays can describe them,
and which strides, ranges and ray count follow.

Dimension key
    G: objects of one image    S: shapes that are drawn: objects, or all their parts
    R: rays    2: (x, y) in pixels of the image
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, isfinite, log2
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from polarmask.config.overrides import override
from polarmask.config.settings import RunConfig
from polarmask.data.coco import Annotation, CocoData, ImageRecord
from polarmask.data.preprocess import input_scale
from polarmask.data.summary import SplitSummary, results_cut
from polarmask.errors import ConfigError
from polarmask.evaluation.evaluate import Evaluation, evaluate_predictions
from polarmask.geometry import masks
from polarmask.geometry.rays import Polygons, cast_rays, decode_rays
from polarmask.inference.instances import Instances
from polarmask.labels.image_labels import label_image

Item = TypeVar("Item")

RAY_COUNTS = (18, 36, 72)
SIDE_EDGES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, float("inf"))
"""Of the size histogram: square root of an object's area in pixels of the network's input."""

_ENOUGH_IOU = 0.035
"""A smaller gain is not worth more rays: on COCO, 72 gain .015 over 36 and train no better."""
_FEWEST_LEVELS = 3
"""Fewer would drop the deeper stages of the backbone, which see an object's surroundings."""
_STRIDES_PER_OBJECT = 3
"""A small object should be at least this many locations wide, or its positives are few."""
_RANGE_STRIDES = 8
"""A level learns objects up to this many of its strides from the location, as published."""


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


@dataclass(frozen=True)
class Recommendation:
    """Settings that fit the sizes of the objects."""

    strides: tuple[int, ...]
    level_ranges: tuple[tuple[float, float], ...]
    num_rays: int
    reason: str
    input_settings: tuple[str, ...] = ()
    """For the values of the pixels."""

    def overrides(self) -> list[str]:
        """Return the settings as `--set` takes them."""
        ranges = ",".join(
            f"[{low:g},{f'{high:g}' if isfinite(high) else 'Infinity'}]"
            for low, high in self.level_ranges
        )
        return [
            f"model.strides=[{','.join(map(str, self.strides))}]",
            f"labels.level_ranges=[{ranges}]",
            f"model.num_rays={self.num_rays}",
            *self.input_settings,
        ]

    def apply(self, config: RunConfig) -> RunConfig:
        """Return the run with these settings."""
        return override(config, self.overrides())


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
    """Objects between the `SIDE_EDGES`."""
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
    side_G = np.array([_side(image, a, config) for image, a in objects])
    reach_G = np.array([_reach(image, a, config) for image, a in objects])
    drawn = {
        num_rays: _draw_from_rays(part, num_rays, config.labels.parts)
        for num_rays in dict.fromkeys((*RAY_COUNTS, config.model.num_rays))
    }
    limit = config.postprocess.max_instances
    bounds = tuple(_bound(part, num_rays, *drawn[num_rays], limit) for num_rays in RAY_COUNTS)
    predictions, iou_of = drawn[config.model.num_rays]
    recommendation = recommend(side_G, reach_G, [b for b in bounds if _can_run(config, b.num_rays)])
    recommendation = replace(recommendation, input_settings=data.input_settings)
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


def _can_run(config: RunConfig, num_rays: int) -> bool:
    """Return whether the run allows this ray count: quarter turns need a multiple of 4."""
    try:
        replace(config, model=replace(config.model, num_rays=num_rays))
    except ConfigError:
        return False
    return True


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """Return `number` items evenly spread over a sequence, from the first on; all if fewer."""
    if len(items) <= number:
        return list(items)
    return [items[index * len(items) // number] for index in range(number)]


def _side(image: ImageRecord, annotation: Annotation, config: RunConfig) -> float:
    """Return the square root of an object's area in pixels of the network's input."""
    scale_2 = input_scale((image.height, image.width), config.input)
    return float(np.sqrt(annotation.area * scale_2.prod()))


def _reach(image: ImageRecord, annotation: Annotation, config: RunConfig) -> float:
    """Return the distance from the middle of the box to its farthest side, network pixels."""
    x0, y0, x1, y1 = annotation.bbox
    scale_2 = input_scale((image.height, image.width), config.input)
    return float((np.array([x1 - x0, y1 - y0]) * scale_2).max() / 2)


def _draw_from_rays(
    data: CocoData, num_rays: int, parts: Literal["largest", "all"]
) -> tuple[dict[int, Instances], dict[tuple[int, int], float]]:
    """Redraw every object from exact rays around its centre of mass, or each part around its own.

    Returns:
        Instances by image id, and mask IoU with the annotation by image id and row.
    """
    predictions, iou_of = {}, {}
    bar = tqdm(data.images, desc=f"{num_rays} rays", unit="image", delay=2, disable=None)
    for image in bar:
        objects = [annotation for annotation in image.annotations if annotation.parts]
        if not objects:
            continue
        found = _exact_instances(image, objects, data, num_rays, parts)
        predictions[image.id] = found
        for row, (rle, annotation) in enumerate(zip(found.rle(), objects, strict=True)):
            truth = masks.rle_from_segmentation(
                annotation.segmentation, (image.height, image.width)
            )
            iou_of[image.id, row] = float(masks.rle_iou([rle], [truth])[0, 0])
    return predictions, iou_of


def _exact_instances(
    image: ImageRecord,
    objects: Sequence[Annotation],
    data: CocoData,
    num_rays: int,
    parts: Literal["largest", "all"],
) -> Instances:
    shapes = [a.parts if parts == "all" else a.parts[:1] for a in objects]
    count_G = np.array([len(each) for each in shapes])
    first_G = np.cumsum(count_G) - count_G  # an object's parts follow each other, the largest first
    polygons = Polygons.from_vertices([torch.from_numpy(part) for each in shapes for part in each])
    _, center_S2 = polygons.area_and_centroid()
    ray_SR, _ = cast_rays(center_S2, torch.arange(len(center_S2)), polygons, num_rays)
    limit_2 = torch.tensor([image.width, image.height])
    polygon_SR2 = decode_rays(center_S2, ray_SR).clamp(min=0).minimum(limit_2).float().numpy()
    low_G2 = np.minimum.reduceat(polygon_SR2.min(axis=1), first_G)
    high_G2 = np.maximum.reduceat(polygon_SR2.max(axis=1), first_G)
    categories = [data.categories[annotation.category] for annotation in objects]
    return Instances(
        image_hw=(image.height, image.width),
        polygons=polygon_SR2[first_G],
        boxes_xywh=np.concatenate([low_G2, high_G2 - low_G2], axis=1),
        scores=np.ones(len(objects), dtype=np.float32),
        category_ids=np.array([category.id for category in categories], dtype=np.int64),
        category_names=tuple(category.name for category in categories),
        centers=center_S2.float().numpy()[first_G],
        ray_lengths=ray_SR.float().numpy()[first_G],
        further_parts={
            row: polygon_SR2[first + 1 : first + count]
            for row, (first, count) in enumerate(zip(first_G, count_G, strict=True))
            if count > 1
        },
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
    bar = tqdm(data.images, desc="labels", unit="image", delay=2, disable=None)
    for image in bar:
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


def recommend(
    side_G: NDArray[np.float64], reach_G: NDArray[np.float64], bounds: Sequence[UpperBound]
) -> Recommendation:
    """Choose strides, ranges and ray count that fit the objects.

    The finest stride puts at least three locations across nine of ten objects. Levels are added
    until the last but one reaches nearly all objects. The ray count is the smallest one with an
    upper bound close to that of the largest.

    Args:
        side_G: Square root of area in pixels of the network's input.
        reach_G: Half the longer box side, in the same pixels.
        bounds: For several ray counts, the largest last.
    """
    small, far = float(np.quantile(side_G, 0.1)), float(np.quantile(reach_G, 0.95))
    finest = next((s for s in (16, 8) if s * _STRIDES_PER_OBJECT <= small), 4)
    levels = min(5, max(_FEWEST_LEVELS, ceil(log2(max(far, 1) / (finest * _RANGE_STRIDES))) + 1))
    strides = tuple(finest * 2**level for level in range(levels))
    highs = [*(float(stride * _RANGE_STRIDES) for stride in strides[:-1]), float("inf")]
    lows = [0.0, *highs[:-1]]
    best = bounds[-1].mean_iou
    rays = next(bound for bound in bounds if bound.mean_iou >= best - _ENOUGH_IOU)
    reason = (
        f"one object in ten is smaller than {small:.0f} px and one in twenty reaches farther than "
        f"{far:.0f} px from its middle; exact rays fit with a mean IoU of "
        + ", ".join(f"{bound.mean_iou:.3f} ({bound.num_rays})" for bound in bounds)
    )
    return Recommendation(strides, tuple(zip(lows, highs, strict=True)), rays.num_rays, reason)


def range_labels(edges: Sequence[float]) -> list[str]:
    """Return a name for each bin between two edges, such as "8-16" or "512+"."""
    return [f"{low:g}-{high:g}" if isfinite(high) else f"{low:g}+" for low, high in pairwise(edges)]
