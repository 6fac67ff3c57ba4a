"""PolarMask: images to raw predictions, and raw predictions plus targets to losses.

Dimension key
    B: images    H, W: rows and columns    L: locations    P: positives of the batch
    C: categories    R: rays    4: left, top, right, bottom (boxes: x0, y0, x1, y1)
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polarmask.config.settings import LossConfig, ModelConfig
from polarmask.network import losses
from polarmask.network.backbone import Pyramid
from polarmask.network.head import PolarHead, Predictions
from polarmask.system.distributed import all_sum, world_size


@dataclass(frozen=True, eq=False)
class Targets:
    """What a batch should learn; flat over images.

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


class PolarMask(nn.Module):
    """Anchor-free instance segmentation by rays (Xie et al., CVPR 2020).

    forward: images (B, 3, H, W), float, normalised, H and W multiples of the coarsest stride ->
    `Predictions`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.pyramid = Pyramid(config)
        self.head = PolarHead(config)

    def forward(self, image_B3HW: Tensor) -> Predictions:
        """Return raw predictions at all locations."""
        predictions: Predictions = self.head(self.pyramid(image_B3HW))
        return predictions


def positive_quality(
    predictions: Predictions | None, targets: Targets, config: LossConfig
) -> Tensor:
    """Return the quality target (P,), in (0, 1]; only `polar_iou` looks at the predictions."""
    if config.centerness == "polar":
        return losses.polar_centerness(targets.ray_PR)
    if config.centerness == "soft":
        return losses.soft_polar_centerness(targets.ray_PR)
    assert predictions is not None  # noqa: S101  # see the docstring
    pred_PR = predictions.ray_BLR[targets.image_P, targets.location_P].detach()
    return losses.polar_iou(pred_PR, targets.ray_PR)


def loss_sums(predictions: Predictions, targets: Targets, config: LossConfig) -> dict[str, Tensor]:
    """Return unnormalised losses and the sums that normalise them.

    Keys: `class`, `ray`, `quality`, `box` (with a box branch), and `positives`, `weight`, `images`
    for `loss_divisors`. Without positives all but `class` are zero
    and keep the graph.
    """
    at = (targets.image_P, targets.location_P)
    wanted_BLC = torch.zeros_like(predictions.class_BLC)
    wanted_BLC[(*at, targets.category_P)] = 1
    class_BLC = losses.focal_loss(
        predictions.class_BLC.float(),
        wanted_BLC.float(),
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
    )
    class_BLC[targets.ignored_I2[:, 0], targets.ignored_I2[:, 1]] = 0
    quality_P = positive_quality(predictions, targets, config)
    ray_P = losses.polar_iou_loss(predictions.ray_BLR[at], targets.ray_PR)
    sums = {
        "class": class_BLC.sum(),
        "ray": (quality_P * ray_P).sum(),
        "quality": losses.quality_loss(predictions.quality_BL[at].float(), quality_P).sum(),
    }
    if predictions.box_BL4 is not None:
        # The original counts both end pixels of a box: half a pixel more on each side.
        more = 0.5 if config.normalizer == "original" else 0.0
        box_P = losses.box_iou_loss(predictions.box_BL4[at] + more, targets.box_P4 + more)
        sums["box"] = (quality_P * box_P).sum()
    sums["positives"] = torch.tensor(float(len(quality_P)), device=quality_P.device)
    sums["weight"] = quality_P.detach().sum()
    sums["images"] = sums["positives"].new_tensor(float(len(predictions.class_BLC)))
    return sums


def loss_divisors(counts: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """Return what divides each loss sum, so that the shares of all processes add up to the loss.

    Normally counts of all processes divide, so that any split of the batch gives the same loss. The
    original divides by what each process has and averages over processes; as there, weights that
    are all 0 make the loss NaN.

    Args:
        counts: `positives`, `weight` and `images` of this process's part of the step.
        config: How to normalise.
    """
    if config.normalizer == "original":
        positives = counts["positives"].clamp(min=1)
        weight = torch.where(counts["positives"] > 0, counts["weight"], 1.0)
        divisors = {"class": counts["positives"] + counts["images"], "quality": positives}
        divisors |= {"ray": weight, "box": weight}
        return {name: value * world_size() for name, value in divisors.items()}
    positives = all_sum(counts["positives"]).clamp(min=1)
    weight = all_sum(counts["weight"]).clamp(min=1e-6)
    return {"class": positives, "quality": positives, "ray": weight, "box": weight}


def normalise_losses(sums: dict[str, Tensor], divisors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Divide the loss sums that there are."""
    return {name: sums[name] / value for name, value in divisors.items() if name in sums}
