"""Raw predictions to instances, on the device, without a loop over categories.

Dimension key
    L: locations    C: categories    K: candidates    B: the best of them    N: kept shapes
    R: rays
    2: (x, y), 4: x0, y0, x1, y1, in pixels of the network's input
"""

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from polarmask.config.settings import PostprocessConfig
from polarmask.geometry.locations import all_points
from polarmask.geometry.rays import decode_rays
from polarmask.network.head import Predictions
from polarmask.original.rays import original_directions

_HIGHEST_ORIGINAL_SCORE = 1.5

_FIRST_CONSIDERED = 4
"""Of the best candidates, per instance wanted: most lose to a better one, so some more are seen."""

_SAME_OBJECT_IOU = 0.8
"""Shapes whose predicted boxes overlap more than this are parts of one object."""


@dataclass(frozen=True, eq=False)
class RawInstances:
    """Shapes found in one image, in pixels of the network's input.

    A row is a star shape: an instance, or a part of one. Instances come best score first, the
    parts of an instance one after the other, best score first.

    Attributes:
        center_N2, ray_NR: Where the rays start and how long they are.
        polygon_NR2: Ray ends, clipped to the image.
        box_N4: Predicted boxes, or boxes around the polygons; clipped.
        score_N: Class probability times quality, or the original's score over 1.5; in [0, 1].
        category_N: Category index.
        instance_N: Which instance a shape belongs to, 0, 1, ...
    """

    center_N2: Tensor
    ray_NR: Tensor
    polygon_NR2: Tensor
    box_N4: Tensor
    score_N: Tensor
    category_N: Tensor
    instance_N: Tensor


def postprocess(
    predictions: Predictions,
    image_hws: list[tuple[int, int]],
    *,
    strides: tuple[int, ...],
    config: PostprocessConfig,
    parts: Literal["largest", "all"] = "largest",
    given_hws: list[tuple[int, int]] | None = None,
) -> list[RawInstances]:
    """Decode a batch.

    Args:
        predictions: Of B images.
        image_hws: Rows and columns of each image inside the padded canvas; polygons are clipped
            to them and locations beyond them are dropped.
        strides: Of the model.
        config: Thresholds, and whose score.
        parts: What the network was trained with; `all` puts shapes with one box together.
        given_hws: Rows and columns of each image before it was resized, in whose pixels the
            original compares boxes; None if it was not.
    """
    point_L2 = all_points(predictions.level_hws, strides, predictions.class_BLC.device)
    return [
        _postprocess_one(predictions, index, point_L2, image_hw, given_hw, config, parts)
        for index, (image_hw, given_hw) in enumerate(
            zip(image_hws, given_hws or image_hws, strict=True)
        )
    ]


def _postprocess_one(
    predictions: Predictions,
    index: int,
    point_L2: Tensor,
    image_hw: tuple[int, int],
    given_hw: tuple[int, int],
    config: PostprocessConfig,
    parts: Literal["largest", "all"],
) -> RawInstances:
    size_2 = point_L2.new_tensor([image_hw[1], image_hw[0]])
    scale_2 = size_2 / size_2.new_tensor(given_hw[::-1])
    location_K, category_K, score_K = _candidates(predictions, index, point_L2 < size_2, config)
    order_K = score_K.argsort(descending=True, stable=True)
    # What a candidate loses to is better than it, so the best ones decide among themselves; those
    # that come after the last instance wanted are neither drawn nor compared.
    considered = len(order_K) if parts == "all" else _FIRST_CONSIDERED * config.max_instances
    while True:
        best_K = order_K[:considered]
        location_B, category_B = location_K[best_K], category_K[best_K]
        shapes = _decode(predictions, index, location_B, point_L2[location_B], size_2, config)
        kept_N = _suppress(shapes, category_B, size_2, scale_2, config, parts)
        if considered >= len(order_K) or len(kept_N) >= config.max_instances:
            break
        considered *= 4
    if parts == "all":
        instance_N = _group_parts(shapes.box_K4[kept_N], category_B[kept_N], config.max_instances)
    else:
        instance_N = torch.arange(len(kept_N), device=kept_N.device)
    order_N = instance_N.argsort(stable=True)
    order_N = order_N[instance_N[order_N] < config.max_instances]
    kept_N = kept_N[order_N]
    return RawInstances(
        center_N2=shapes.center_K2[kept_N],
        ray_NR=shapes.ray_KR[kept_N],
        polygon_NR2=shapes.polygon_KR2[kept_N],
        box_N4=shapes.box_K4[kept_N],
        score_N=score_K[best_K[kept_N]],
        category_N=category_B[kept_N],
        instance_N=instance_N[order_N],
    )


def _suppress(
    shapes: "_Shapes",
    category_K: Tensor,
    size_2: Tensor,
    scale_2: Tensor,
    config: PostprocessConfig,
    parts: Literal["largest", "all"],
) -> Tensor:
    """Return which shapes are left (N,), best first, of shapes that come best first."""
    compared_K4 = shapes.box_K4
    if parts == "all":  # parts of an object share its box; what tells them apart is where they lie
        compared_K4 = _extents(shapes.polygon_KR2)
    if config.score == "original":
        # Its boxes hold their last pixel too: one more wide and high.
        compared_K4 = compared_K4 / scale_2.repeat(2) + scale_2.new_tensor([0, 0, 1, 1])
    # Categories lie side by side on one canvas, too far apart to overlap. In float64, because far
    # from the origin float32 has no digits left for the fractions of pixels.
    width = (size_2 / scale_2).maximum(size_2).max().double() + 2
    apart_K4 = compared_K4.double() + (category_K * width)[:, None]
    rank_K = torch.arange(len(apart_K4), 0, -1, device=apart_K4.device, dtype=apart_K4.dtype)
    kept_N: Tensor = nms(apart_K4, rank_K, config.nms_iou)
    return kept_N


class _Shapes(NamedTuple):
    center_K2: Tensor
    ray_KR: Tensor
    polygon_KR2: Tensor
    box_K4: Tensor


def _decode(
    predictions: Predictions,
    index: int,
    location_K: Tensor,
    center_K2: Tensor,
    size_2: Tensor,
    config: PostprocessConfig,
) -> _Shapes:
    """Draw the polygons and boxes that are predicted at some locations, clipped to the image."""
    ray_KR = predictions.ray_BLR[index].index_select(0, location_K)
    limit_2, direction_R2 = size_2, None
    if config.score == "original":
        limit_2 = size_2 - 1  # its polygons and boxes end on the last pixel
        direction_R2 = original_directions(ray_KR.shape[1], like=ray_KR)
    polygon_KR2 = decode_rays(center_K2, ray_KR, direction_R2).clamp(min=0).minimum(limit_2)
    if predictions.box_BL4 is None:
        return _Shapes(center_K2, ray_KR, polygon_KR2, _extents(polygon_KR2))
    side_K4 = predictions.box_BL4[index, location_K]
    box_K4 = torch.cat([center_K2 - side_K4[:, :2], center_K2 + side_K4[:, 2:]], dim=1)
    box_K4 = box_K4.clamp(min=0).minimum(limit_2.repeat(2))
    return _Shapes(center_K2, ray_KR, polygon_KR2, box_K4)


def _extents(polygon_KR2: Tensor) -> Tensor:
    return torch.cat([polygon_KR2.amin(dim=1), polygon_KR2.amax(dim=1)], dim=1)


def _candidates(
    predictions: Predictions, index: int, inside_L2: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return location, category and score of what goes into suppression, in order of location."""
    class_LC = predictions.class_BLC[index].float()
    quality_L = predictions.quality_BL[index].float().sigmoid()
    is_original = config.score == "original"
    inside_L = inside_L2[:, 0] & inside_L2[:, 1]
    highest_L = class_LC.amax(dim=1)
    best_L = highest_L.sigmoid() * quality_L
    if not is_original:
        best_L = best_L * inside_L
    level_ends = list(accumulate(rows * columns for rows, columns in predictions.level_hws))
    # The best scores of a level are at its best locations, so only those are looked through.
    chosen_L = _best_per_level(best_L, level_ends, config.pre_nms_top_k)
    chosen_L = chosen_L[highest_L[chosen_L] > _lowest_logit(config.score_threshold)]
    row_K, category_K, class_K = _above(class_LC.index_select(0, chosen_L), config.score_threshold)
    location_K = chosen_L[row_K]
    if is_original:
        # It takes all categories of the locations, and ranks by probability times (quality + 0.5).
        score_K = class_K * (quality_L[location_K] + 0.5) / _HIGHEST_ORIGINAL_SCORE
        return location_K, category_K, score_K
    score_K = class_K * quality_L[location_K]
    wanted_K = inside_L[location_K] & (score_K > 0)
    location_K, category_K, score_K = location_K[wanted_K], category_K[wanted_K], score_K[wanted_K]
    ends_K = torch.searchsorted(location_K, location_K.new_tensor(level_ends)).tolist()
    best_K = _best_per_level(score_K, ends_K, config.pre_nms_top_k)
    return location_K[best_K], category_K[best_K], score_K[best_K]


def _above(class_LC: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return row, category and probability of the logits whose probability is above a threshold."""
    row_K, category_K = (class_LC > _lowest_logit(threshold)).nonzero(as_tuple=True)
    class_K = class_LC[row_K, category_K].sigmoid()
    above_K = class_K > threshold
    return row_K[above_K], category_K[above_K], class_K[above_K]


def _lowest_logit(threshold: float) -> float:
    """Return a logit that is below all whose probability is above a threshold."""
    # The margin covers what rounding makes of a logit at the threshold; near 1 it makes the most.
    margin = 1e-4 + 1e-6 / (1 - threshold)
    return math.log(threshold / (1 - threshold)) - margin if threshold else -math.inf


def _best_per_level(score_K: Tensor, level_ends: list[int], top_k: int) -> Tensor:
    """Return in ascending order where the best top_k scores of each level are.

    Args:
        score_K: Scores, level by level.
        level_ends: Where each level ends among them.
        top_k: How many at most.
    """
    best = []
    for first, end in pairwise([0, *level_ends]):
        if end - first > top_k:
            best.append(first + score_K[first:end].topk(top_k).indices.sort().values)
        else:
            best.append(torch.arange(first, end, device=score_K.device))
    return torch.cat(best)


def _group_parts(box_N4: Tensor, category_N: Tensor, max_instances: int) -> Tensor:
    """Return for each shape, best first, the instance it belongs to; `max_instances` is none.

    The network predicts the box of the whole object at each of its parts, so shapes of one category
    whose boxes agree are one instance. The best free shape takes all that agree with it.
    """
    device = box_N4.device
    box_N4, category_N = box_N4.cpu(), category_N.cpu()  # a loop, each round of which would wait
    instance_N = torch.full((len(box_N4),), max_instances)
    best = 0
    for instance in range(max_instances):
        free_F = best + (instance_N[best:] == max_instances).nonzero()[:, 0]
        if not len(free_F):
            break
        best = int(free_F[0])
        agree_F = box_iou(box_N4[best : best + 1], box_N4[free_F])[0] > _SAME_OBJECT_IOU
        instance_N[free_F[agree_F & (category_N[free_F] == category_N[best])]] = instance
        instance_N[best] = instance  # a box without area agrees with nothing
    return instance_N.to(device)
