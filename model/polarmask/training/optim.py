"""Learning-rate schedule, optimiser, and averaged weights.

The schedule is `learning_rate`; its settings are `OptimConfig` in `config/settings.py`.
"""

import logging
import math
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from polarmask.config.settings import OptimConfig
from polarmask.network.deform import DeformConv2d
from polarmask.system.distributed import is_first
from polarmask.training.muon import Muon

logger = logging.getLogger(__name__)


def peak_rate(config: OptimConfig) -> float:
    """Return the peak learning rate, which grows linearly with the batch size."""
    return config.lr * (config.batch_size / config.lr_batch_size)


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step.

    Linear warm-up, then division by 10 at each of `lr_drops`, or a cosine to 1 % of the peak.
    """
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
    """Set the rate of every group, times the group's `lr_factor` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def make_optimizer(detector: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimiser over the parameters that learn, in the groups of `param_groups`."""
    if is_first() and config.batch_size != config.lr_batch_size:
        logger.info(
            "learning rate %g: %g is for %d images a step, this run takes %d",
            peak_rate(config),
            config.lr,
            config.lr_batch_size,
            config.batch_size,
        )
    if config.optimizer == "muon":
        return Muon(_muon_groups(detector, config.weight_decay), lr=config.lr)
    groups = _PARAM_GROUPS[config.param_groups](detector, config.weight_decay)
    # Fused: one pass over all weights instead of one per term (benchmarks/training_step.py).
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=True)


def _matrix_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay no biases, norms and level scales: they need not be close to zero."""
    learned = [p for p in detector.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _muon_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Put apart what Muon changes: the weights between the first layer and the outputs.

    The first layer and depthwise convolutions see three channels or one: too few to be a matrix.
    """
    outputs = {
        id(layer.weight)
        for name, layer in detector.named_modules()
        if name.startswith("head.") and "." not in name.removeprefix("head.")
        if isinstance(layer, nn.Conv2d)
    }
    matrices, vectors = _matrix_groups(detector, weight_decay)
    hidden = [p for p in matrices["params"] if p.shape[1] > 3 and id(p) not in outputs]
    inner = {id(p) for p in hidden}
    matrices["params"] = [p for p in matrices["params"] if id(p) not in inner]
    return [{"params": hidden, "weight_decay": weight_decay, "orthogonal": True}, matrices, vectors]


def _original_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Train biases at twice the rate and without decay, as the paper's code."""
    biases = _original_biases(detector)
    learned = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    slow = [p for name, p in learned.items() if name not in biases]
    fast = [p for name, p in learned.items() if name in biases]
    return [
        {"params": slow, "weight_decay": weight_decay},
        {"params": fast, "weight_decay": 0.0, "lr_factor": 2.0},
    ]


def _original_biases(detector: nn.Module) -> set[str]:
    """Return the parameters that the paper's code treats as biases.

    It finds norms by name and misses those of deformable towers, so their biases count, too.
    """
    deformed = any(isinstance(module, DeformConv2d) for module in detector.modules())
    norm_biases = {
        f"{name}.bias"
        for name, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
        and not (deformed and name.startswith("head."))
    }
    return {n for n, _ in detector.named_parameters() if n.endswith("bias")} - norm_biases


_PARAM_GROUPS = {"matrices": _matrix_groups, "original": _original_groups}


def make_average(detector: nn.Module, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of weights and buffers; None for a decay of 0."""
    if decay == 0:
        return None
    return AveragedModel(detector, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
