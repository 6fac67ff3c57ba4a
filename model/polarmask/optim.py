"""How the weights move: learning rate, optimiser, averaged weights."""

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polarmask.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the rate of a step: linear warm-up, then tenfold drops or a cosine to zero."""
    warmup_steps = min(config.warmup_steps, total_steps // 3)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    if config.schedule == "step":
        drops = sum(step >= share * total_steps for share in config.lr_drops)
        return config.lr * warmup * 0.1**drops
    if step < warmup_steps:
        return config.lr * warmup
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def make_optimizer(detector: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Decay matrices only: biases, norms and level scales are not to be pulled to zero."""
    learned = [p for p in detector.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)


def make_average(detector: nn.Module, decay: float) -> AveragedModel | None:
    """Return a running average of weights and buffers; None for a decay of 0."""
    if decay == 0:
        return None
    return AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
