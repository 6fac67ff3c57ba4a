"""How the weights move: learning rate, optimiser, averaged weights."""

import logging
import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polarmask.config.settings import OptimConfig
from polarmask.network.deform import DeformConv2d
from polarmask.system.distributed import is_first

logger = logging.getLogger(__name__)


def peak_rate(config: OptimConfig) -> float:
    """Return the peak learning rate of this batch size: twice the images, twice the rate."""
    return config.lr * (config.batch_size / config.lr_batch_size)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the rate of a step: linear warm-up, then tenfold drops or a cosine to zero."""
    peak = peak_rate(config)
    warmup_steps = min(config.warmup_steps, total_steps // 3)
    warmup_rate = peak
    if step < warmup_steps and config.warmup_lr:
        start = min(config.warmup_lr, peak)
        warmup_rate = start + (peak - start) * step / warmup_steps
    elif step < warmup_steps:
        warmup_rate = peak * ((step + 1) / (warmup_steps + 1))
    if config.schedule == "step":
        drops = sum(step >= share * total_steps for share in config.lr_drops)
        return float(warmup_rate * 0.1**drops)
    if step < warmup_steps:
        return warmup_rate
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate; groups without a factor of their own learn at `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def make_optimizer(detector: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over the parameters that learn, grouped as `param_groups` says."""
    if is_first() and config.batch_size != config.lr_batch_size:
        logger.info(
            "learning rate %g: %g is for %d images a step, this run takes %d",
            peak_rate(config),
            config.lr,
            config.lr_batch_size,
            config.batch_size,
        )
    learned = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]]
    if config.param_groups == "original":
        fast = _original_biases(detector)
        groups = [
            {
                "params": [p for name, p in learned.items() if name not in fast],
                "weight_decay": config.weight_decay,
            },
            {
                "params": [p for name, p in learned.items() if name in fast],
                "weight_decay": 0.0,
                "lr_factor": 2.0,
            },
        ]
    else:  # biases, norms and level scales are not to be pulled to zero
        groups = [
            {
                "params": [p for p in learned.values() if p.ndim > 1],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for p in learned.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
    # Fused: one pass over all weights instead of one per term (benchmarks/training_step.py).
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)


def _original_biases(detector: nn.Module) -> set[str]:
    """Return the parameters that the paper's code takes for biases.

    It knows a norm by its name, and the norms of deformable towers have none: their biases count.
    """
    deformed = any(isinstance(module, DeformConv2d) for module in detector.modules())
    norm_biases = {
        f"{name}.bias"
        for name, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
        and not (deformed and name.startswith("head."))
    }
    return {n for n, _ in detector.named_parameters() if n.endswith("bias")} - norm_biases


def make_average(detector: nn.Module, decay: float) -> AveragedModel | None:
    """Return a running average of weights and buffers; None for a decay of 0."""
    if decay == 0:
        return None
    return AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
