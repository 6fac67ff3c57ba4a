"""The three-branch head of PolarMask: category and quality, rays, and optionally boxes.

Dimension key
    B: images    L: locations of all levels, finest level first, row by row    C: categories
    R: rays      4: distances left, top, right, bottom
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polarmask.config.settings import ModelConfig
from polarmask.network.deform import DeformConv2d
from polarmask.network.norm import group_norm

_PRIOR_PROBABILITY = 0.01


@dataclass(frozen=True, eq=False)
class Predictions:
    """Raw output of the network.

    Attributes:
        class_BLC: Category logits.
        quality_BL: Quality (centerness) logits.
        ray_BLR: Ray lengths in pixels of the network's input, > 0.
        box_BL4: Distances to the box sides in pixels, > 0; None without a box branch.
        level_hws: Rows and columns of each level.
    """

    class_BLC: Tensor
    quality_BL: Tensor
    ray_BLR: Tensor
    box_BL4: Tensor | None
    level_hws: tuple[tuple[int, int], ...]


class PolarHead(nn.Module):
    """Towers shared by all levels; one learnable scale per level for rays and boxes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.channels
        pixels = config.length_unit == "pixel"
        self.units = tuple(1 if pixels else stride for stride in config.strides)
        self.class_tower = _tower(config)
        self.ray_tower = _tower(config)
        self.class_logit = nn.Conv2d(channels, config.num_classes, 3, padding=1)
        self.quality_logit = nn.Conv2d(channels, 1, 3, padding=1)
        self.ray = nn.Conv2d(channels, config.num_rays, 3, padding=1)
        self.ray_scale = nn.Parameter(torch.ones(len(config.strides)))
        self.has_boxes = config.box_branch
        if self.has_boxes:
            self.box_tower = _tower(config)
            self.box = nn.Conv2d(channels, 4, 3, padding=1)
            self.box_scale = nn.Parameter(torch.ones(len(config.strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformConv2d):
                module.reset_offsets()
        # Almost everything is background: start by saying so, or the first steps are spent on it.
        prior = -math.log((1 - _PRIOR_PROBABILITY) / _PRIOR_PROBABILITY)
        bias = torch.full((config.num_classes,), prior)
        self.class_logit.bias = nn.Parameter(bias)
        # Without it the first steps are spent on the typical length of a ray.
        self.ray.bias = nn.Parameter(torch.full((config.num_rays,), math.log(config.first_ray)))

    def forward(self, levels: list[Tensor]) -> Predictions:
        """Predict at every location; `levels` are (B, channels, H, W), one per stride."""
        class_logits, quality_logits, rays, boxes = [], [], [], []
        for index, (feature, unit) in enumerate(zip(levels, self.units, strict=True)):
            class_feature = self.class_tower(feature)
            class_logits.append(_flatten(self.class_logit(class_feature)))
            quality_logits.append(_flatten(self.quality_logit(class_feature))[..., 0])
            ray = _flatten(self.ray(self.ray_tower(feature))).float()
            rays.append((self.ray_scale[index] * ray).exp() * unit)
            if self.has_boxes:
                box = _flatten(self.box(self.box_tower(feature))).float()
                boxes.append((self.box_scale[index] * box).exp() * unit)
        return Predictions(
            class_BLC=torch.cat(class_logits, dim=1),
            quality_BL=torch.cat(quality_logits, dim=1),
            ray_BLR=torch.cat(rays, dim=1),
            box_BL4=torch.cat(boxes, dim=1) if boxes else None,
            level_hws=tuple((feature.shape[2], feature.shape[3]) for feature in levels),
        )


def _tower(config: ModelConfig) -> nn.Sequential:
    channels = config.channels
    layers: list[nn.Module] = []
    for _ in range(config.tower_depth):
        conv = (
            DeformConv2d(channels, channels, bias=True, modulated=True)
            if config.dcn
            else nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        )
        layers += [conv, group_norm(channels, config.norm_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _flatten(map_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C); free of copies when the map is channels-last."""
    return map_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
