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
from polarmask.original.scores import ScoreRules, score_rules

_FIRST_CONSIDERED = 4
"""Candidates that are compared at first, per instance wanted: most lose to a better one."""

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
    rules = score_rules(config)
    point_L2 = all_points(predictions.level_hws, strides, predictions.class_BLC.device)
    found = []
    for index, (image_hw, given_hw) in enumerate(
        zip(image_hws, given_hws or image_hws, strict=True)
    ):
        image = _Image.of(predictions, index, point_L2, image_hw, given_hw)
        found.append(_instances(_candidates(image, config, rules), image, config, rules, parts))
    return found


@dataclass(frozen=True, eq=False)
class _Image:
    """The predictions for one image."""

    class_LC: Tensor
    quality_L: Tensor
    """In (0, 1)."""
    ray_LR: Tensor
    box_L4: Tensor | None
    point_L2: Tensor
    level_ends: list[int]
    size_2: Tensor
    """Width and height inside the canvas, in pixels of the network's input."""
    scale_2: Tensor
    """Pixels of the network's input per pixel of the given image."""

    @classmethod
    def of(
        cls,
        predictions: Predictions,
        index: int,
        point_L2: Tensor,
        image_hw: tuple[int, int],
        given_hw: tuple[int, int],
    ) -> "_Image":
        size_2 = point_L2.new_tensor([image_hw[1], image_hw[0]])
        return cls(
            class_LC=predictions.class_BLC[index].float(),
            quality_L=predictions.quality_BL[index].float().sigmoid(),
            ray_LR=predictions.ray_BLR[index],
            box_L4=None if predictions.box_BL4 is None else predictions.box_BL4[index],
            point_L2=point_L2,
            level_ends=list(accumulate(rows * columns for rows, columns in predictions.level_hws)),
            size_2=size_2,
            scale_2=size_2 / size_2.new_tensor(given_hw[::-1]),
        )


class _Candidates(NamedTuple):
    """Pairs of location and category that may be an instance, or a part of one."""

    location_K: Tensor
    category_K: Tensor
    score_K: Tensor

    def take(self, index_N: Tensor) -> "_Candidates":
        return _Candidates(*(each[index_N] for each in self))


class _Shapes(NamedTuple):
    """Candidates with their polygons and boxes, in pixels of the network's input."""

    candidates: _Candidates
    center_K2: Tensor
    ray_KR: Tensor
    polygon_KR2: Tensor
    box_K4: Tensor

    def take(self, index_N: Tensor) -> "_Shapes":
        return _Shapes(self.candidates.take(index_N), *(each[index_N] for each in self[1:]))


def _candidates(image: _Image, config: PostprocessConfig, rules: ScoreRules) -> _Candidates:
    """Return what goes into suppression, in order of location."""
    x_is_inside_L, y_is_inside_L = (image.point_L2 < image.size_2).unbind(dim=1)
    inside_L = x_is_inside_L & y_is_inside_L  # many times faster than all(dim=1)
    highest_L = image.class_LC.amax(dim=1)
    best_L = highest_L.sigmoid() * image.quality_L
    if not rules.is_scored_by_location:
        best_L = best_L * inside_L
    # The best scores of a level are at its best locations, so only those are looked through.
    chosen_L = _best_per_level(best_L, image.level_ends, config.pre_nms_top_k)
    chosen_L = chosen_L[highest_L[chosen_L] > _lowest_logit(config.score_threshold)]
    class_LC = image.class_LC.index_select(0, chosen_L)
    row_K, category_K, class_K = _above(class_LC, config.score_threshold)
    location_K = chosen_L[row_K]
    score_K = class_K * (image.quality_L[location_K] + rules.quality_offset)
    found = _Candidates(location_K, category_K, score_K / (1 + rules.quality_offset))
    if rules.is_scored_by_location:
        return found
    found = found.take(inside_L[location_K] & (found.score_K > 0))
    level_end_L = found.location_K.new_tensor(image.level_ends)
    ends_K = torch.searchsorted(found.location_K, level_end_L).tolist()
    return found.take(_best_per_level(found.score_K, ends_K, config.pre_nms_top_k))


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


def _instances(
    candidates: _Candidates,
    image: _Image,
    config: PostprocessConfig,
    rules: ScoreRules,
    parts: Literal["largest", "all"],
) -> RawInstances:
    """Return the shapes that candidates become, those of one instance after the other."""
    best = candidates.take(candidates.score_K.argsort(descending=True, stable=True))
    if parts == "all":
        # Parts of an object share its box; their places differ.
        shapes = _decode(best, image, rules)
        extent_K4 = _extents(shapes.polygon_KR2)
        shapes = shapes.take(_suppress(shapes, extent_K4, image, config, rules))
        category_N = shapes.candidates.category_K
        instance_N = _group_parts(shapes.box_K4, category_N, config.max_instances)
    else:
        shapes = _best_shapes(best, _FIRST_CONSIDERED * config.max_instances, image, config, rules)
        instance_N = torch.arange(len(shapes.box_K4), device=shapes.box_K4.device)
    order_N = instance_N.argsort(stable=True)
    order_N = order_N[instance_N[order_N] < config.max_instances]
    shapes = shapes.take(order_N)
    return RawInstances(
        center_N2=shapes.center_K2,
        ray_NR=shapes.ray_KR,
        polygon_NR2=shapes.polygon_KR2,
        box_N4=shapes.box_K4,
        score_N=shapes.candidates.score_K,
        category_N=shapes.candidates.category_K,
        instance_N=instance_N[order_N],
    )


def _best_shapes(
    best: _Candidates,
    considered: int,
    image: _Image,
    config: PostprocessConfig,
    rules: ScoreRules,
) -> _Shapes:
    """Return at least `max_instances` shapes that survive suppression, if there are as many.

    A candidate only loses to better ones, so the best decide among themselves: the first
    `considered` are drawn and compared, and four times as many if too few of them survive.
    """
    shapes = _decode(_Candidates(*(each[:considered] for each in best)), image, rules)
    shapes = shapes.take(_suppress(shapes, shapes.box_K4, image, config, rules))
    if considered >= len(best.score_K) or len(shapes.box_K4) >= config.max_instances:
        return shapes
    return _best_shapes(best, 4 * considered, image, config, rules)


def _decode(candidates: _Candidates, image: _Image, rules: ScoreRules) -> _Shapes:
    """Draw the polygons and boxes that are predicted, clipped to the image."""
    limit_2 = image.size_2 - rules.last_pixel
    center_K2 = image.point_L2[candidates.location_K]
    ray_KR = image.ray_LR.index_select(0, candidates.location_K)
    direction_R2 = rules.directions(ray_KR.shape[1], like=ray_KR)
    polygon_KR2 = decode_rays(center_K2, ray_KR, direction_R2).clamp(min=0).minimum(limit_2)
    if image.box_L4 is None:
        return _Shapes(candidates, center_K2, ray_KR, polygon_KR2, _extents(polygon_KR2))
    side_K4 = image.box_L4[candidates.location_K]
    box_K4 = torch.cat([center_K2 - side_K4[:, :2], center_K2 + side_K4[:, 2:]], dim=1)
    box_K4 = box_K4.clamp(min=0).minimum(limit_2.repeat(2))
    return _Shapes(candidates, center_K2, ray_KR, polygon_KR2, box_K4)


def _extents(polygon_KR2: Tensor) -> Tensor:
    return torch.cat([polygon_KR2.amin(dim=1), polygon_KR2.amax(dim=1)], dim=1)


def _suppress(
    shapes: _Shapes,
    box_K4: Tensor,
    image: _Image,
    config: PostprocessConfig,
    rules: ScoreRules,
) -> Tensor:
    """Return which shapes are left (N,), best first, of shapes that come best first."""
    if rules.compares_given_pixels:
        box_K4 = box_K4 / image.scale_2.repeat(2)
    box_K4 = box_K4 + box_K4.new_tensor([0, 0, rules.last_pixel, rules.last_pixel])
    # Categories lie side by side on one canvas, too far apart to overlap. In float64, because far
    # from the origin float32 has no digits left for the fractions of pixels.
    width = (image.size_2 / image.scale_2).maximum(image.size_2).max().double() + 2
    apart_K4 = box_K4.double() + (shapes.candidates.category_K * width)[:, None]
    rank_K = torch.arange(len(apart_K4), 0, -1, device=apart_K4.device, dtype=apart_K4.dtype)
    kept_N: Tensor = nms(apart_K4, rank_K, config.nms_iou)
    return kept_N


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
