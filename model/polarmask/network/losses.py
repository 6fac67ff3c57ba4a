"""What the network minimises: focal, polar IoU, box IoU, quality. All return one value per row.

Dimension key
    P: positive locations    R: rays    4: distances left, top, right, bottom    C: categories
"""

import torch
from torch import Tensor
from torch.nn import functional


def focal_loss(logit: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (RetinaNet), elementwise.

    Args:
        logit: Any shape.
        target: Same shape, 0 or 1.
        alpha: Weight of the ones; zeros weigh 1 - alpha.
        gamma: How strongly easy elements fade.
    """
    probability = logit.sigmoid()
    cross_entropy = functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    miss = probability + target - 2 * probability * target
    weight = (1 - alpha) + (2 * alpha - 1) * target
    return weight * miss.pow(gamma) * cross_entropy


def polar_iou(pred_PR: Tensor, target_PR: Tensor) -> Tensor:
    """Overlap of two star shapes with a common centre, in (0, 1] (PolarMask, section 3.4).

    Ratio of sums, not mean of ratios: short rays must not outvote long ones.
    """
    return pred_PR.minimum(target_PR).sum(dim=1) / pred_PR.maximum(target_PR).sum(dim=1)


def polar_iou_loss(pred_PR: Tensor, target_PR: Tensor) -> Tensor:
    """-log of the polar IoU, shape (P,), >= 0."""
    return -polar_iou(pred_PR, target_PR).log()


def box_iou_loss(pred_P4: Tensor, target_P4: Tensor) -> Tensor:
    """-log IoU of boxes given as distances from a common location, shape (P,), in [0, 13.9]."""
    pred_area_P = (pred_P4[:, 0] + pred_P4[:, 2]) * (pred_P4[:, 1] + pred_P4[:, 3])
    target_area_P = (target_P4[:, 0] + target_P4[:, 2]) * (target_P4[:, 1] + target_P4[:, 3])
    least_P4 = pred_P4.minimum(target_P4)
    overlap_P = (least_P4[:, 0] + least_P4[:, 2]).clamp(min=0)
    overlap_P = overlap_P * (least_P4[:, 1] + least_P4[:, 3]).clamp(min=0)
    iou_P = overlap_P / (pred_area_P + target_area_P - overlap_P).clamp(min=1e-6)
    return -iou_P.clamp(min=1e-6).log()


def polar_centerness(ray_PR: Tensor) -> Tensor:
    """sqrt(shortest / longest ray), in (0, 1] (PolarMask, section 3.3)."""
    return (ray_PR.amin(dim=1) / ray_PR.amax(dim=1)).sqrt()


def soft_polar_centerness(ray_PR: Tensor) -> Tensor:
    """Centerness from the mean rays of opposite quadrants, in (0, 1] (PolarMask++).

    One short ray no longer condemns a location. Equals FCOS centerness for four rays.
    """
    per_quadrant = ray_PR.shape[1] // 4
    mean_P4 = ray_PR[:, : 4 * per_quadrant].reshape(len(ray_PR), 4, per_quadrant).mean(dim=2)
    first_P2, opposite_P2 = mean_P4[:, :2], mean_P4[:, 2:]
    ratio_P2 = first_P2.minimum(opposite_P2) / first_P2.maximum(opposite_P2)
    return ratio_P2.prod(dim=1).sqrt()


def quality_loss(logit_P: Tensor, target_P: Tensor) -> Tensor:
    """Binary cross-entropy against a quality in [0, 1], shape (P,)."""
    return functional.binary_cross_entropy_with_logits(logit_P, target_P, reduction="none")


def total(parts: dict[str, Tensor]) -> Tensor:
    """Sum the named losses; all weights are 1 (SPEC of the paper: no loss weights)."""
    return torch.stack(list(parts.values())).sum()
