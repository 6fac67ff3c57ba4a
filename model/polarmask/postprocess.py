"""Raw predictions to instances, on the device, without a loop over categories.

Dimension key
    L: locations    C: categories    K: candidates    N: kept instances    R: rays
    2: (x, y), 4: x0, y0, x1, y1, in pixels of the network's input
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from polarmask.config import PostprocessConfig
from polarmask.head import Predictions
from polarmask.rays import decode_rays


@dataclass(frozen=True, eq=False)
class RawInstances:
    """Instances of one image, best score first, in pixels of the network's input.

    Attributes:
        center_N2, ray_NR: Where the rays start and how long they are.
        polygon_NR2: Ray ends, clipped to the image.
        box_N4: Predicted boxes, or boxes around the polygons; clipped.
        score_N: Class probability times quality, in [0, 1].
        category_N: Category index.
    """

    center_N2: Tensor
    ray_NR: Tensor
    polygon_NR2: Tensor
    box_N4: Tensor
    score_N: Tensor
    category_N: Tensor


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
) -> list[RawInstances]:
    """Decode a batch.

    Args:
        predictions: Of B images.
        image_hws: Rows and columns of each image inside the padded canvas; polygons are clipped
            to them and locations beyond them are dropped.
        strides: Of the model.
        config: Thresholds.
    """
    point_L2 = all_points(predictions.level_hws, strides, predictions.class_BLC.device)
    return [
        _postprocess_one(predictions, index, point_L2, image_hw, config)
        for index, image_hw in enumerate(image_hws)
    ]


def _postprocess_one(
    predictions: Predictions,
    index: int,
    point_L2: Tensor,
    image_hw: tuple[int, int],
    config: PostprocessConfig,
) -> RawInstances:
    limit_2 = point_L2.new_tensor([image_hw[1], image_hw[0]])
    class_LC = predictions.class_BLC[index].float().sigmoid()
    score_LC = class_LC * predictions.quality_BL[index].float().sigmoid()[:, None]
    on_image_L1 = (point_L2 < limit_2).all(dim=1, keepdim=True)
    score_LC = score_LC.where((class_LC > config.score_threshold) & on_image_L1, 0)
    location_K, category_K, score_K = _best_per_level(
        score_LC, predictions.level_hws, config.pre_nms_top_k
    )
    center_K2 = point_L2[location_K]
    ray_KR = predictions.ray_BLR[index, location_K]
    polygon_KR2 = decode_rays(center_K2, ray_KR).clamp(min=0).minimum(limit_2)
    if predictions.box_BL4 is None:
        box_K4 = torch.cat([polygon_KR2.amin(dim=1), polygon_KR2.amax(dim=1)], dim=1)
    else:
        side_K4 = predictions.box_BL4[index, location_K]
        box_K4 = torch.cat([center_K2 - side_K4[:, :2], center_K2 + side_K4[:, 2:]], dim=1)
        box_K4 = box_K4.clamp(min=0).minimum(limit_2.repeat(2))
    kept_N = batched_nms(box_K4, score_K, category_K, config.nms_iou)[: config.max_instances]
    return RawInstances(
        center_N2=center_K2[kept_N],
        ray_NR=ray_KR[kept_N],
        polygon_NR2=polygon_KR2[kept_N],
        box_N4=box_K4[kept_N],
        score_N=score_K[kept_N],
        category_N=category_K[kept_N],
    )


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
