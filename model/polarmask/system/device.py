"""Devices, half precision and determinism."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from polarmask.errors import ConfigError


def find_device(kind: str | torch.device | None = None, *, index: int = 0) -> torch.device:
    """Return an available device.

    Args:
        kind: "cpu" or "cuda"; None takes CUDA if available. A device is returned as it is.
        index: Of the GPU, from 0.

    Raises:
        ConfigError: CUDA is wanted and torch finds no such GPU.
    """
    if isinstance(kind, torch.device):
        return kind
    found = torch.cuda.device_count()
    if kind is None:
        kind = "cuda" if found else "cpu"
    if kind != "cuda":
        return torch.device(kind)
    if index >= found:
        raise ConfigError(
            f"device cuda:{index} does not exist, torch {torch.__version__} finds {found} GPUs; "
            "use --device cpu or fewer processes, or check that `nvidia-smi` lists the GPU and "
            "that torch was built for it"
        )
    return torch.device("cuda", index)


def half_precision(
    amp: Literal["off", "auto", "bf16", "fp16"], device: torch.device
) -> torch.dtype | None:
    """Return the dtype of convolutions under autocast, None for float32.

    Raises:
        ConfigError: The GPU has no bf16.
    """
    on_cuda = device.type == "cuda"
    if amp == "off" or (amp == "auto" and not on_cuda and not _cpu_computes_bf16()):
        return None
    if amp == "fp16":
        return torch.float16
    # Older GPUs emulate bf16, many times slower than they compute fp16.
    if not on_cuda or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    if amp == "bf16":
        raise ConfigError("optim.amp is bf16 and this GPU has none; --set optim.amp=fp16")
    return torch.float16


def _cpu_computes_bf16() -> bool:
    """Return whether this CPU multiplies bf16; others emulate it, many times slower."""
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class _InFloat32:
    """Comes before the class of a convolution: autocast leaves it in float32.

    forward: (B, C, H, W) of any floating dtype -> (B, C, H, W) float32.
    """

    def forward(self, image: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            convolved: Tensor = super().forward(image.float())  # type: ignore[misc]  # nn.Conv2d has it
        return convolved


def keep_depthwise_in_float32(network: nn.Module) -> None:
    """Leave depthwise convolutions out of autocast, in place: bf16 gradients are slow on CPUs.

    Names and values of the weights stay (ADR 0030).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            kind = type(module)
            module.__class__ = type(kind.__name__, (_InFloat32, kind), {})


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Make operations bitwise reproducible; those that can't be raise an error with their name."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, at start
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
