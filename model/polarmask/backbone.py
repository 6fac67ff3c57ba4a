"""Image to feature pyramid: torchvision's ResNet and FPN, at any range of strides.

Dimension key
    B: images    C: channels    H, W: rows and columns of a level
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from polarmask.config import ModelConfig
from polarmask.errors import ConfigError

_STAGE_OF_STRIDE = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}


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
    """ResNet with FPN.

    forward: images (B, 3, H, W), normalised, H and W multiples of the coarsest stride ->
    one (B, channels, H / stride, W / stride) tensor per stride, finest first.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        norm: dict[str, Callable[[int], nn.Module]] = {
            "batch": nn.BatchNorm2d,
            "frozen_batch": FrozenBatchNorm2d,
            "group": lambda channels: nn.GroupNorm(32, channels),
        }
        resnet = torchvision.models.get_model(
            config.backbone, weights=None, norm_layer=norm[config.backbone_norm]
        )
        stages = {
            stage: str(stride)
            for stride, stage in _STAGE_OF_STRIDE.items()
            if stride in config.strides
        }
        widths = [_stage_width(resnet, stage) for stage in stages]
        self.resnet = IntermediateLayerGetter(resnet, stages)
        num_coarser = len(config.strides) - len(stages)
        coarser = _CoarserLevels(config.channels, num_coarser) if num_coarser else None
        self.fpn = FeaturePyramidNetwork(widths, config.channels, coarser)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Return the levels, finest first."""
        stages: OrderedDict[str, Tensor] = self.resnet(image_B3HW)
        return list(self.fpn(stages).values())


def _stage_width(resnet: nn.Module, stage: str) -> int:
    last_block = getattr(resnet, stage)[-1]
    last_conv = getattr(last_block, "conv3", last_block.conv2)
    return int(last_conv.out_channels)


def load_backbone_weights(pyramid: Pyramid, source: str) -> None:
    """Fill the ResNet from a state dict file or from torchvision's ImageNet weights.

    Args:
        pyramid: Its `resnet` is overwritten; the FPN is left alone.
        source: Path of a state dict with torchvision's parameter names, or the name of a weights
            enum such as `ResNet50_Weights.IMAGENET1K_V1` (downloaded once by torchvision).

    Raises:
        ConfigError: File or name unknown, no download possible, or parameters missing.
    """
    state = _read_weights(source)
    wanted = pyramid.resnet.state_dict()
    missing = sorted(key for key in wanted if key not in state and "num_batches" not in key)
    if missing:
        raise ConfigError(
            f"{source} lacks {len(missing)} backbone parameters, first {missing[0]}: "
            f"give weights of the configured backbone with torchvision's parameter names"
        )
    try:
        pyramid.resnet.load_state_dict({key: state[key] for key in wanted if key in state}, False)
    except RuntimeError as error:
        raise ConfigError(f"{source} does not fit the configured backbone: {error}") from error


def _read_weights(source: str) -> dict[str, Tensor]:
    if Path(source).is_file():
        state = torch.load(source, map_location="cpu", weights_only=True)
        return dict(state.get("state_dict", state))
    try:
        weights = torchvision.models.get_weight(source)
    except ValueError as error:
        raise ConfigError(
            f"--backbone-weights {source}: neither a file nor a torchvision weights name; "
            "write for example ResNet50_Weights.IMAGENET1K_V1"
        ) from error
    try:
        return dict(weights.get_state_dict(progress=False))
    except OSError as error:
        raise ConfigError(
            f"can't download {weights.url} ({error}); fetch it on a machine with network and pass "
            "its path to --backbone-weights, or start afresh with --set backbone_weights=none "
            "--set model.backbone_norm=group"
        ) from error
