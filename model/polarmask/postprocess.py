"""Raw predictions to instances, on the device, without a loop over categories.

Dimension key
    L: locations    C: categories    K: candidates    N: kept shapes    R: rays
    2: (x, y), 4: x0, y0, x1, y1, in pixels of the network's input
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from polarmask.config import PostprocessConfig
from polarmask.head import Predictions
from polarmask.original_rays import original_directions
from polarmask.rays import decode_rays

_HIGHEST_ORIGINAL_SCORE = 1.5

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


def all_points(
    level_hws: tuple[tuple[int, int], ...], strides: tuple[int, ...], device: torch.device
) -> Tensor:
    """Return the pixel coordinates (L, 2) of all locations, finest level first, row by row."""
    points = []
    for (rows, columns), stride in zip(level_hws, strides, strict=True):
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        points.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 2))
    return torch.cat(points)


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
    location_K, category_K, score_K = _candidates(predictions, index, point_L2 < size_2, config)
    shapes = _decode(predictions, index, location_K, point_L2[location_K], size_2, config)
    compared_K4 = shapes.box_K4
    if parts == "all":  # parts of an object share its box; what tells them apart is where they lie
        compared_K4 = _extents(shapes.polygon_KR2)
    if config.score == "original":
        scale_2 = size_2 / size_2.new_tensor(given_hw[::-1])
        # Its boxes hold their last pixel too: one more wide and high.
        compared_K4 = compared_K4 / scale_2.repeat(2) + size_2.new_tensor([0, 0, 1, 1])
    kept_N = batched_nms(compared_K4, score_K, category_K, config.nms_iou)
    if parts == "all":
        instance_N = _group_parts(shapes.box_K4[kept_N], category_K[kept_N])
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
        score_N=score_K[kept_N],
        category_N=category_K[kept_N],
        instance_N=instance_N[order_N],
    )


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
    ray_KR = predictions.ray_BLR[index, location_K]
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
    """Return location, category and score of what goes into suppression."""
    class_LC = predictions.class_BLC[index].float().sigmoid()
    quality_L1 = predictions.quality_BL[index].float().sigmoid()[:, None]
    if config.score == "original":
        score_LC = _original_scores(class_LC, quality_L1, predictions.level_hws, config)
        location_K, category_K = score_LC.nonzero(as_tuple=True)
        return location_K, category_K, score_LC[location_K, category_K]
    wanted_LC = (class_LC > config.score_threshold) & inside_L2.all(dim=1, keepdim=True)
    score_LC = (class_LC * quality_L1).where(wanted_LC, 0)
    return _best_per_level(score_LC, predictions.level_hws, config.pre_nms_top_k)


def _original_scores(
    class_LC: Tensor,
    quality_L1: Tensor,
    level_hws: tuple[tuple[int, int], ...],
    config: PostprocessConfig,
) -> Tensor:
    """Return the original's scores over their maximum; 0 for what it drops before suppression.

    It chooses locations by probability times quality and ranks what is left by probability times
    (quality + 0.5).
    """
    best_L = (class_LC * quality_L1).amax(dim=1)
    chosen_L1 = torch.zeros_like(quality_L1, dtype=torch.bool)
    first = 0
    for rows, columns in level_hws:
        level_L = best_L[first : first + rows * columns]
        chosen_L1[first + level_L.topk(min(config.pre_nms_top_k, len(level_L))).indices] = True
        first += rows * columns
    score_LC = class_LC * (quality_L1 + 0.5) / _HIGHEST_ORIGINAL_SCORE
    return score_LC.where((class_LC > config.score_threshold) & chosen_L1, 0)


def _group_parts(box_N4: Tensor, category_N: Tensor) -> Tensor:
    """Return for each shape, best first, the instance it belongs to.

    The network predicts the box of the whole object at each of its parts, so shapes of one category
    whose boxes agree are one instance. The best free shape takes all that agree with it.
    """
    agree_NN = box_iou(box_N4, box_N4) > _SAME_OBJECT_IOU
    agree_NN = (agree_NN & (category_N[:, None] == category_N)).cpu()
    instance_N = torch.full((len(box_N4),), -1)
    count = 0
    for row in range(len(box_N4)):
        if instance_N[row] < 0:
            instance_N[agree_NN[row] & (instance_N < 0)] = count
            instance_N[row] = count  # a box without area agrees with nothing
            count += 1
    return instance_N.to(box_N4.device)


def _best_per_level(
    score_LC: Tensor, level_hws: tuple[tuple[int, int], ...], top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return location, category and score of at most top_k candidates per level, scores > 0."""
    num_categories = score_LC.shape[1]
    locations, categories, scores = [], [], []
    first = 0
    for rows, columns in level_hws:
        level_scores = score_LC[first : first + rows * columns].flatten()
        best, where = level_scores.topk(min(top_k, len(level_scores)))
        where, best = where[best > 0], best[best > 0]
        locations.append(first + where // num_categories)
        categories.append(where % num_categories)
        scores.append(best)
        first += rows * columns
    return torch.cat(locations), torch.cat(categories), torch.cat(scores)
