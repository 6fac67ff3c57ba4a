"""Deformable convolution: a small convolution predicts where each tap samples."""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

_TAPS = 9


class DeformConv2d(nn.Module):
    """A 3x3 convolution with learned tap positions (v1) and, if `modulated`, tap weights (v2).

    forward: (B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).

    Every tap has an offset (y, x) in locations; a modulated one also has a weight in (0, 1), 0.5
    before training. `offset` predicts both and starts at zero: an untrained layer is an ordinary
    convolution, halved if modulated.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        modulated: bool = False,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(_TAPS * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)
        self._num_weights = _TAPS if modulated else 0
        predicted = 2 * _TAPS + self._num_weights
        self.offset = nn.Conv2d(in_channels, predicted, 3, stride=stride, padding=1)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Put the taps back on their regular grid."""
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None  # noqa: S101  # built with one above
        nn.init.zeros_(self.offset.bias)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Sample bilinearly at the shifted taps; outside the map everything is zero.

        torchvision samples in no half precision, so from there on this computes in float32.
        """
        predicted = self.offset(feature_BCHW)
        dtype = torch.promote_types(feature_BCHW.dtype, torch.float32)
        offset, tap_weight = predicted.to(dtype).split([2 * _TAPS, self._num_weights], dim=1)
        sampled: Tensor = deform_conv2d(
            feature_BCHW.to(dtype),
            offset,
            self.weight.to(dtype),
            None if self.bias is None else self.bias.to(dtype),
            stride=self.stride,
            padding=1,
            mask=tap_weight.sigmoid() if self._num_weights else None,
        )
        return sampled.to(feature_BCHW.dtype)
