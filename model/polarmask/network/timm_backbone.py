"""A backbone of timm (ADR 0029). The package is an extra, and loaded only where one is used.

Dimension key
    B: images    C: channels    H, W: rows and columns of a level
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from polarmask.config.backbones import TIMM
from polarmask.config.settings import ModelConfig
from polarmask.errors import ConfigError
from polarmask.network.norm import group_norm
from polarmask.system.did_you_mean import did_you_mean

_TRIAL_HW = (5 * 32, 7 * 32)
"""Divided by 32, as training images may be, and by nothing that a model of one size would ask."""


class TimmFeatures(nn.Module):
    """The levels of a timm model up to its coarsest, and nothing behind them.

    forward: images (B, 3, H, W), H and W multiples of the coarsest stride -> levels
    (B, C, H / stride, W / stride) by stride, finest first.

    Attributes:
        name: Of the model in timm.
        net: Made by timm, with its names; norms as configured.
        widths: Channels of the levels.
        frozen: Modules of the frozen stages.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.name = config.backbone.removeprefix(TIMM)
        strides, frozen_stride = _strides(config)
        plan = _plan(self.name, strides, frozen_stride)
        net = _create(self.name, plan.indices)
        _cut_off(net, plan.behind)
        self._behind = tuple(f"{path}." for path in plan.behind)
        self.net = _with_norms(net, config)
        self.widths = list(plan.widths)
        self._strides = [str(stride) for stride in strides]
        self.frozen = [
            module
            for path, module in self.net.named_modules()
            if any(name in plan.frozen for name, _ in module.named_parameters(path, recurse=False))
        ]
        for path, parameter in self.net.named_parameters():
            # Several processes would wait for gradients of what no level depends on.
            parameter.requires_grad_(path in plan.reached)

    def forward(self, image_B3HW: Tensor) -> OrderedDict[str, Tensor]:
        """Return the levels by stride."""
        return OrderedDict(zip(self._strides, self.net(image_B3HW), strict=True))

    def names_here(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what `net` needs of a state dict of the whole model, under the names there.

        timm joins the first two parts of a name where stages are taken out of a container.
        """
        parts = {name for name, _ in self.net.named_children()}
        named = {}
        for key, value in state.items():
            first, _, rest = key.partition(".")
            joined = f"{first}_{rest.partition('.')[0]}"
            if first not in parts and joined in parts:
                key = key.replace(".", "_", 1)
            elif parts == {"model"} and first != "model":
                key = f"model.{key}"
            if not key.startswith(self._behind):
                named[key] = value
        return named


def check_timm_backbone(config: ModelConfig) -> None:
    """Raise ConfigError unless timm has the backbone, with the strides that are asked for."""
    strides, frozen_stride = _strides(config)
    _plan(config.backbone.removeprefix(TIMM), strides, frozen_stride)


def pretrained_timm(name: str) -> dict[str, Tensor]:
    """Download weights that timm names.

    Args:
        name: Of the model, with or without the tag of the weights.

    Raises:
        ConfigError: No such model or tag, or no download possible.
    """
    try:
        model = _timm().create_model(name, pretrained=True)
    except Exception as error:  # timm, its hub and the network have errors of their own
        raise ConfigError(
            f"timm can't download the weights of {name} ({_first_line(error)}); on a machine with "
            'network run `python -c "import timm, torch; torch.save(timm.create_model('
            f"'{name}', pretrained=True).state_dict(), '{name}.pth')\"` and pass "
            f"--backbone-weights {name}.pth, or train from scratch with "
            "--set backbone_weights=none --set model.backbone_norm=group"
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


@dataclass(frozen=True)
class _Plan:
    """What to take out of a model."""

    indices: tuple[int, ...]
    """Of the levels among the model's own."""
    widths: tuple[int, ...]
    reached: frozenset[str]
    """Names of the parameters that the levels depend on."""
    frozen: frozenset[str]
    """Those of the frozen stages."""
    behind: tuple[str, ...]
    """Paths of the blocks behind the last level, which some models keep and compute."""


def _strides(config: ModelConfig) -> tuple[tuple[int, ...], int]:
    """Return the strides that the backbone has to have, and that of the last frozen stage or 0."""
    name = config.backbone.removeprefix(TIMM)
    has = _levels(name)
    wanted = tuple(stride for stride in config.strides if stride <= max(has))
    frozen_stride = 2 * 2**config.frozen_stages if config.frozen_stages else 0
    lacking = sorted({*wanted, frozen_stride} - {0, *has})
    if lacking or not wanted:
        raise ConfigError(
            f"backbone {config.backbone} has strides {', '.join(map(str, sorted(has)))}; "
            f"model.strides {list(config.strides)} with model.frozen_stages="
            f"{config.frozen_stages} needs {', '.join(map(str, lacking or config.strides[:1]))}: "
            "change them or choose another backbone"
        )
    return wanted, frozen_stride


@cache
def _levels(name: str) -> dict[int, tuple[int, int]]:
    """Return index and channels of a model's levels by stride."""
    info: Any = _on_meta(name).feature_info
    found = zip(info.out_indices, info.channels(), info.reduction(), strict=True)
    return {stride: (index, width) for index, width, stride in found}


@cache
def _plan(name: str, strides: tuple[int, ...], frozen_stride: int) -> _Plan:
    """Try the model without memory: what levels does it give, and what do they depend on?"""
    levels = _levels(name)
    indices, widths = zip(*(levels[stride] for stride in strides), strict=True)
    everywhere = sorted({*strides, frozen_stride} - {0})
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.device("meta"):
        net = _on_meta(name, tuple(levels[stride][0] for stride in everywhere))
        try:
            found = dict(zip(everywhere, net(torch.zeros(1, 3, *_TRIAL_HW)), strict=True))
        except Exception as error:  # models have checks of their own
            raise _no_pyramid(name, error) from error
        for stride, level in found.items():
            wanted = (1, levels[stride][1], *(side // stride for side in _TRIAL_HW))
            if tuple(level.shape) != wanted:
                raise _no_pyramid(name, f"level of {tuple(level.shape)} instead of {wanted}")
        reached = _reached(net, [found[stride] for stride in strides])
        frozen = _reached(net, [found[frozen_stride]]) if frozen_stride else frozenset()
        behind = _blocks_behind(net, reached)
        try:
            _cut_off(net, behind)
            shapes = [level.shape for level in net(torch.zeros(1, 3, *_TRIAL_HW))]
        except Exception:  # of timm's code: this model runs with its last blocks only
            shapes = []
        if shapes != [level.shape for level in found.values()]:
            behind = ()
    return _Plan(indices, widths, reached, frozen, behind)


def _blocks_behind(net: nn.Module, reached: frozenset[str]) -> tuple[str, ...]:
    """Return the paths of the last blocks of the model's sequences that no level depends on."""
    behind = []
    for name, sequence in net.named_children():
        if not isinstance(sequence, nn.Sequential):
            continue
        for nth, block in reversed(list(sequence.named_children())):
            path = f"{name}.{nth}"
            own = {f"{path}.{parameter}" for parameter, _ in block.named_parameters()}
            if not own or own & reached:  # without parameters, nobody can tell
                break
            behind.append(path)
    return tuple(behind)


def _cut_off(net: nn.Module, paths: Sequence[str]) -> None:
    for path in paths:
        net.set_submodule(path, nn.Identity())


def _reached(net: nn.Module, levels: Sequence[Tensor]) -> frozenset[str]:
    """Return the names of the parameters that levels depend on."""
    parameters = dict(net.named_parameters())
    total = torch.stack([level.sum() for level in levels]).sum()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        total, list(parameters.values()), allow_unused=True, retain_graph=True
    )
    pairs = zip(parameters, gradients, strict=True)
    return frozenset(name for name, gradient in pairs if gradient is not None)


def _on_meta(name: str, indices: tuple[int, ...] | None = None) -> nn.Module:
    """Return a model without memory, in eval mode; the state of random numbers stays."""
    timm = _timm()
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(
            f'timm {timm.__version__} has no model {name}{hint}; `python -c "import timm; '
            "print(timm.list_models('*PART*'))\"` lists those with PART in their names"
        )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return _create(name, indices).eval()
        except Exception as error:  # of models that have no levels, each in its own way
            raise _no_pyramid(name, error) from error


def _create(name: str, indices: tuple[int, ...] | None) -> nn.Module:
    chosen = {} if indices is None else {"out_indices": indices}
    model: nn.Module = _timm().create_model(name, features_only=True, pretrained=False, **chosen)
    return model


def _no_pyramid(name: str, reason: object) -> ConfigError:
    text = _first_line(reason) if isinstance(reason, Exception) else reason
    return ConfigError(
        f"backbone {TIMM}{name} gives no pyramid for images of any size ({text}); choose a "
        f"convolutional one, such as {TIMM}mobilenetv4_conv_small"
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _timm() -> Any:  # noqa: ANN401  # the library has no types
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"backbones {TIMM}NAME need the package {error.name}, which is not installed; run "
            '`pip install "polarmask-k8s[timm]"`'
        ) from error
    return timm


def _with_norms(net: nn.Module, config: ModelConfig) -> nn.Module:
    """Replace batch norm, in place; activation and dropout of timm's norms are kept."""
    kind, backbone = config.backbone_norm, config.backbone
    if kind == "batch":
        return net
    if kind == "frozen_batch":
        from timm.utils.model import freeze_batch_norm_2d

        net = freeze_batch_norm_2d(net)
    else:
        for parent in list(net.modules()):
            for name, norm in list(parent.named_children()):
                if isinstance(norm, nn.BatchNorm2d):
                    setattr(parent, name, _group_norm(norm, config.norm_channels))
    left = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if left:
        raise ConfigError(
            f"backbone_norm {kind}: {backbone} has norms that can't be replaced "
            f"({type(left[0]).__name__}); --set model.backbone_norm=batch, or choose another "
            "backbone"
        )
    return net


def _group_norm(norm: nn.BatchNorm2d, together: int) -> nn.Module:
    from timm.layers import BatchNormAct2d, GroupNormAct

    group = group_norm(norm.num_features, together=together)
    if isinstance(norm, BatchNormAct2d):
        group = GroupNormAct(group.num_channels, num_groups=group.num_groups, apply_act=False)
        group.drop, group.act = norm.drop, norm.act
    # Where timm begins with zeros, a block begins as the identity.
    group.weight, group.bias = norm.weight, norm.bias
    return group
