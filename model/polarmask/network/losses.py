"""The whole loss: predictions and targets of a batch to the number that training minimises.

`loss_sums` adds up focal, polar IoU, box IoU and quality losses over locations, `loss_divisors`
returns what to divide them by, over all processes, and `total` adds the results.

Dimension key
    B: images    L: locations    P: positive locations of the batch    C: categories    R: rays
    I: ignored locations         4: distances left, top, right, bottom
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polarmask.config.settings import LossConfig
from polarmask.network.head import Predictions
from polarmask.original import losses as original
from polarmask.system.distributed import all_sum


@dataclass(frozen=True, eq=False)
class Targets:
    """What the predictions of a batch are compared with; flat over images.

    Attributes:
        image_P: Image of each positive.
        location_P: Location of each positive, counted over all levels of the batch's canvas.
        category_P: Category index, 0 to C - 1.
        ray_PR: Ray lengths in pixels.
        box_P4: Distances to the box sides in pixels.
        ignored_I2: (image, location) pairs that are neither object nor background.
    """

    image_P: Tensor
    location_P: Tensor
    category_P: Tensor
    ray_PR: Tensor
    box_P4: Tensor
    ignored_I2: Tensor

    def to(self, device: torch.device) -> "Targets":
        """Return a copy on `device`."""
        return Targets(**{name: value.to(device) for name, value in vars(self).items()})


def loss_sums(predictions: Predictions, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """Return unnormalised losses and the sums that normalise them.

    Keys: `class`, `ray`, `quality`, `box` (with a box branch), and `positives`, `weight`, `images`
    for `loss_divisors`. Without positives all but `class` are zero and keep the graph.
    """
    at = (targets.image_P, targets.location_P)
    wanted_BLC = torch.zeros_like(predictions.class_BLC)
    wanted_BLC[(*at, targets.category_P)] = 1
    class_BLC = focal_loss(
        predictions.class_BLC.float(),
        wanted_BLC.float(),
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
    )
    class_BLC[targets.ignored_I2[:, 0], targets.ignored_I2[:, 1]] = 0
    quality_P = positive_quality(predictions, targets, config)
    ray_P = -polar_iou(predictions.ray_BLR[at], targets.ray_PR, config.overlap).log()
    sums = {
        "class": class_BLC.sum(),
        "ray": (quality_P * ray_P).sum(),
        "quality": quality_loss(predictions.quality_BL[at].float(), quality_P).sum(),
    }
    if predictions.box_BL4 is not None:
        margin = _BOX_MARGIN[config.normalizer]
        box_P = box_iou_loss(predictions.box_BL4[at] + margin, targets.box_P4 + margin)
        sums["box"] = (quality_P * box_P).sum()
    sums["positives"] = torch.tensor(float(len(quality_P)), device=quality_P.device)
    sums["weight"] = quality_P.detach().sum()
    sums["images"] = sums["positives"].new_tensor(float(len(predictions.class_BLC)))
    return sums


def positive_quality(
    predictions: Predictions | None, targets: Targets, config: LossConfig
) -> Tensor:
    """Return the quality target (P,), in (0, 1]; only `polar_iou` looks at the predictions."""
    if config.centerness == "polar_iou":
        assert predictions is not None  # noqa: S101  # see the docstring
        pred_PR = predictions.ray_BLR[targets.image_P, targets.location_P].detach()
        return polar_iou(pred_PR, targets.ray_PR, config.overlap)
    return _QUALITY_OF_RAYS[config.centerness](targets.ray_PR)


def loss_divisors(counts: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """Return what divides each loss sum, so that the results of all processes add up to the loss.

    Args:
        counts: `positives`, `weight` and `images` of this process's part of the step.
        config: How to normalise: by counts of all processes, so that any split of the batch gives
            the same loss, or as the paper's code.
    """
    return _DIVISORS[config.normalizer](counts)


def _global_divisors(counts: dict[str, Tensor]) -> dict[str, Tensor]:
    positives = all_sum(counts["positives"]).clamp(min=1)
    weight = all_sum(counts["weight"]).clamp(min=1e-6)
    return {"class": positives, "quality": positives, "ray": weight, "box": weight}


def normalise_losses(sums: dict[str, Tensor], divisors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide the loss sums that there are."""
    return {name: sums[name] / value for name, value in divisors.items() if name in sums}


def total(parts: dict[str, Tensor]) -> Tensor:
    """Sum the named losses; all weights are 1 (SPEC of the paper: no loss weights)."""
    return torch.stack(list(parts.values())).sum()


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


def polar_iou(pred_PR: Tensor, target_PR: Tensor, overlap: str = "rays") -> Tensor:
    """Overlap of two star shapes with a common centre, in (0, 1] (PolarMask, section 3.4).

    Shape (P,). Ratio of sums, not mean of ratios: short rays must not outvote long ones.

    Args:
        pred_PR: Predicted ray lengths in pixels, > 0.
        target_PR: True ones.
        overlap: `rays` adds up lengths, as in the paper; `area` their squares: a sector of the
            plane around a ray has half the square of its length, times its angle, as its area.
    """
    shorter_PR, longer_PR = pred_PR.minimum(target_PR), pred_PR.maximum(target_PR)
    if overlap == "area":
        shorter_PR, longer_PR = shorter_PR.square(), longer_PR.square()
    return shorter_PR.sum(dim=1) / longer_PR.sum(dim=1)


def box_iou_loss(pred_P4: Tensor, target_P4: Tensor) -> Tensor:
    """-log IoU of boxes given as distances from a common location, shape (P,), in [0, 13.9]."""
    pred_area_P = (pred_P4[:, 0] + pred_P4[:, 2]) * (pred_P4[:, 1] + pred_P4[:, 3])
    target_area_P = (target_P4[:, 0] + target_P4[:, 2]) * (target_P4[:, 1] + target_P4[:, 3])
    least_P4 = pred_P4.minimum(target_P4)
    overlap_P = (least_P4[:, 0] + least_P4[:, 2]).clamp(min=0)
    overlap_P = overlap_P * (least_P4[:, 1] + least_P4[:, 3]).clamp(min=0)
    iou_P = overlap_P / (pred_area_P + target_area_P - overlap_P).clamp(min=1e-6)
    return -iou_P.clamp(min=1e-6).log()


def quadrant_quality(ray_PR: Tensor) -> Tensor:
    """Compare the mean rays of opposite quadrants, in (0, 1] (soft centerness of PolarMask++).

    One short ray hardly lowers it. For four rays it equals the centerness of FCOS.
    """
    per_quadrant = ray_PR.shape[1] // 4
    mean_P4 = ray_PR[:, : 4 * per_quadrant].reshape(len(ray_PR), 4, per_quadrant).mean(dim=2)
    first_P2, opposite_P2 = mean_P4[:, :2], mean_P4[:, 2:]
    ratio_P2 = first_P2.minimum(opposite_P2) / first_P2.maximum(opposite_P2)
    return ratio_P2.prod(dim=1).sqrt()


def quality_loss(logit_P: Tensor, target_P: Tensor) -> Tensor:
    """Binary cross-entropy against a quality in [0, 1], shape (P,)."""
    return functional.binary_cross_entropy_with_logits(logit_P, target_P, reduction="none")


_QUALITY_OF_RAYS = {"polar": original.polar_centerness, "soft": quadrant_quality}
_DIVISORS = {"global": _global_divisors, "original": original.loss_divisors}
_BOX_MARGIN = {"global": 0.0, "original": original.BOX_MARGIN}
