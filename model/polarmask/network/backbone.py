"""Image to feature pyramid: a backbone and FPN, at any range of strides.

The backbones of torchvision are built here, those of timm in `timm_backbone.py`.

Dimension key
    B: images    C: channels    H, W: rows and columns of a level
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Self

import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from polarmask.config.backbones import TIMM, TORCHVISION, Family
from polarmask.config.settings import ModelConfig
from polarmask.network.deform import DeformConv2d
from polarmask.network.norm import group_norm
from polarmask.network.timm_backbone import TimmFeatures, check_timm_backbone


class _CoarserLevels(ExtraFPNBlock):  # type: ignore[misc]  # torchvision has no types
    """Levels beyond stride 32: stride-2 convolutions on the last FPN output, ReLU in between."""

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_levels)]
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)
        self.convs = nn.ModuleList(convs)

    def forward(
        self, results: list[Tensor], x: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """Append the levels; the signature is torchvision's."""
        for index, conv in enumerate(self.convs):
            last = results[-1] if index == 0 else functional.relu(results[-1])
            results.append(conv(last))
            names.append(f"coarser{index}")
        return results, names


class Pyramid(nn.Module):
    """Backbone with FPN. Frozen stages neither learn nor update their statistics.

    The backbone is called `resnet` in stored weights, whatever it is.

    forward: images (B, 3, H, W), normalised, H and W multiples of the coarsest stride ->
    one (B, channels, H / stride, W / stride) tensor per stride, finest first.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.resnet: nn.Module
        if config.backbone.startswith(TIMM):
            timm = TimmFeatures(config)
            self.resnet, widths, self._frozen = timm, timm.widths, timm.frozen
        else:
            self.resnet, widths, self._frozen = _torchvision_backbone(config)
        num_coarser = len(config.strides) - len(widths)
        coarser = _CoarserLevels(config.channels, num_coarser) if num_coarser else None
        self.fpn = FeaturePyramidNetwork(widths, config.channels, coarser)
        for module in self._frozen:
            module.requires_grad_(requires_grad=False)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; frozen stages stay in evaluation."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Return the levels, finest first."""
        stages: OrderedDict[str, Tensor] = self.resnet(image_B3HW)
        return list(self.fpn(stages).values())


def check_buildable(config: ModelConfig) -> None:
    """Raise ConfigError for a backbone of timm that can't be had; the others are settings."""
    if config.backbone.startswith(TIMM):
        check_timm_backbone(config)


def _torchvision_backbone(config: ModelConfig) -> tuple[nn.Module, list[int], list[nn.Module]]:
    """Return a backbone, the channels of its levels, and the modules of its frozen stages."""
    family = TORCHVISION[config.backbone]
    norm: dict[str, Callable[[int], nn.Module]] = {
        "batch": partial(nn.BatchNorm2d, eps=family.norm_eps),
        "frozen_batch": partial(FrozenBatchNorm2d, eps=family.norm_eps),
        "group": partial(group_norm, together=config.norm_channels),
    }
    resnet = torchvision.models.get_model(
        config.backbone, weights=None, norm_layer=norm[config.backbone_norm]
    )
    resnet = resnet.get_submodule(family.body)
    if config.backbone_style == "caffe":
        _halve_in_first_conv(resnet)
    if config.dcn:
        _deform(resnet)
    stages = {
        stage: str(stride)
        for stride, stage in zip((2, 4, 8, 16, 32), (family.stem, *family.stages), strict=True)
        if stride in config.strides
    }
    widths = [_stage_width(resnet, stage) for stage in stages]
    backbone = IntermediateLayerGetter(resnet, stages)
    return backbone, widths, _first_stages(backbone, family, config.frozen_stages)


def _first_stages(backbone: nn.Module, family: Family, count: int) -> list[nn.Module]:
    found = []
    stage_number = 1  # what comes before the first stage belongs to it
    for name, module in backbone.named_children():
        if stage_number <= count:
            found.append(module)
        stage_number += name in family.stages
    return found


def _stage_width(resnet: nn.Module, stage: str) -> int:
    """Return the channels that leave a stage: those of the last convolution up to its end."""
    width = 0
    for name, part in resnet.named_children():
        # Nothing is deformed at a stage's last convolution.
        for module in part.modules():
            width = module.out_channels if isinstance(module, nn.Conv2d) else width
        if name == stage:
            break
    return width


def _later_blocks(resnet: nn.Module) -> Iterator[Bottleneck]:
    """Yield the blocks of layers 2 to 4."""
    for name in ("layer2", "layer3", "layer4"):
        yield from resnet.get_submodule(name).children()


def _halve_in_first_conv(resnet: nn.Module) -> None:
    """Move the stride from the 3x3 to the 1x1 before it, where Caffe's weights expect it."""
    for block in _later_blocks(resnet):
        block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def _deform(resnet: nn.Module) -> None:
    """Replace the 3x3 convolutions of layers 2 to 4 by deformable ones."""
    for block in _later_blocks(resnet):
        conv = block.conv2
        block.conv2 = DeformConv2d(
            conv.in_channels, conv.out_channels, stride=conv.stride[0], groups=conv.groups
        )
