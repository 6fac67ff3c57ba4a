"""Which backbones there are. To add one of torchvision, name it in `TORCHVISION`.

Those of timm are known by the form of their names: timm itself says which it has (ADR 0029).
"""

import re
from dataclasses import dataclass, replace

from polarmask.errors import ConfigError
from polarmask.system.did_you_mean import did_you_mean

TIMM = "timm/"
"""Comes before the names of timm's backbones."""
_TIMM_NAME = re.compile(rf"{TIMM}[a-z0-9_]+")


@dataclass(frozen=True)
class Family:
    """What backbones of one kind have in common."""

    stem: str
    """Name of the last module of stride 2."""
    stages: tuple[str, str, str, str]
    """Name of the last module of the stages of strides 4, 8, 16 and 32."""
    norm_eps: float
    """Epsilon of batch norm, as in the published weights."""
    body: str = ""
    """Name of the submodule that holds the stages; empty for the model itself."""
    bottleneck: bool = False
    """Whether blocks are convolutions of 1x1, 3x3 and 1x1."""


_RESNET = Family("relu", ("layer1", "layer2", "layer3", "layer4"), norm_eps=1e-5)
_DEEP_RESNET = replace(_RESNET, bottleneck=True)
# The last 1x1 convolution of MobileNet is left out: it is 960 channels wide.
_MOBILENET = Family("1", ("3", "6", "12", "15"), norm_eps=1e-3, body="features")

TORCHVISION = {
    "resnet18": _RESNET,
    "resnet50": _DEEP_RESNET,
    "resnet101": _DEEP_RESNET,
    "resnext101_64x4d": _DEEP_RESNET,
    "mobilenet_v3_large": _MOBILENET,
}
"""Backbones by the name of their function in `torchvision.models`."""


def check_backbone(name: str) -> None:
    """Raise ConfigError unless a backbone may have this name."""
    if name in TORCHVISION or _TIMM_NAME.fullmatch(name):
        return
    if name.startswith(TIMM):
        raise ConfigError(
            f"backbone {name!r}: names of timm's models have small letters, digits and _ only; "
            "a tag such as .in1k belongs to --backbone-weights"
        )
    raise ConfigError(
        f"there is no backbone {name!r}{did_you_mean(name, TORCHVISION)}; there are: "
        f"{', '.join(TORCHVISION)}, and those of timm as {TIMM}NAME"
    )


def has_bottlenecks(name: str) -> bool:
    """Return whether the blocks are convolutions of 1x1, 3x3 and 1x1."""
    return name in TORCHVISION and TORCHVISION[name].bottleneck
