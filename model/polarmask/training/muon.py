"""Muon: an optimiser whose updates change a weight matrix in all directions alike.

The gradients of a matrix point in few directions, which learn fast while the others wait. Muon
takes their running mean and sets all its singular values to about one (Jordan et al., 2024,
kellerjordan.github.io/posts/muon). The step is then scaled to the size of AdamW's, so both share
one learning rate (Liu et al., 2025, arXiv 2502.16982).
"""

import math
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = 0.95
_STEP_SIZE = 0.2
"""Root mean square of AdamW's steps, in learning rates."""
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups with `orthogonal=True`, AdamW for the others.

    The weight of a convolution counts as a matrix: output channels by all else. The state of an
    orthogonal group is that of AdamW without the second moment.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__([{"orthogonal": False, **group} for group in groups], lr=lr, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change the weights by their gradients, which are used up."""
        # The gradient scaler of fp16 asks fused optimisers to skip a step that overflowed.
        overflowed = getattr(self, "found_inf", None)
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                gradient = weight.grad
                weight.grad = None  # AdamW takes no step without a gradient
                if gradient is not None and not overflowed:
                    self._turn(weight, gradient, group["lr"], group["weight_decay"])
        super().step()

    def _turn(self, weight: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(weight)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(mean, _MOMENTUM)  # Nesterov's
        matrix = orthogonal(ahead.flatten(1))
        weight.mul_(1 - lr * weight_decay)
        size = _STEP_SIZE * math.sqrt(max(matrix.shape))
        weight.add_(matrix.view(weight.shape), alpha=-lr * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with all its singular values between about 0.7 and 1.2.

    Newton-Schulz iteration X <- (a + b XX' + c XX'XX') X. All its factors are polynomials in XX',
    so they are multiplied first and with X once, because a weight is much longer than wide. In
    float32: the products of bf16 are too coarse for that order.

    Args:
        matrix: (N, M), any scale; zeros stay zero.
    """
    wide = matrix.float() if len(matrix) <= matrix.shape[1] else matrix.float().T
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = _POLYNOMIAL
    square = wide @ wide.T
    product = identity = torch.eye(len(wide), device=wide.device)
    for _ in range(_ITERATIONS):
        factor = a * identity + b * square + c * square @ square
        product = factor @ product
        square = factor @ square @ factor
    turned: Tensor = product @ wide
    return (turned if len(matrix) <= matrix.shape[1] else turned.T).to(matrix.dtype)
