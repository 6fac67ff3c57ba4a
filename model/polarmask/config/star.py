"""Runs for large data such as COCO that are not published ones: what paid in our experiments.

The schedule, batch and network are PolarNeXt's; losses and outputs are those of `tiny` (ADR 0031).
No GPU has trained them yet, so they have no mask AP of their own.
"""

from dataclasses import replace

from polarmask.config.input_settings import InputConfig
from polarmask.config.settings import LossConfig, ModelConfig, OptimConfig, RunConfig


def star_r50_1x() -> RunConfig:
    """Return R-50 with torchvision's weights: 12 epochs, batch 8, 1333 x 800."""
    return RunConfig(
        name="star-r50-1x",
        model=ModelConfig(frozen_stages=1, box_branch=False, first_ray=2.0),
        input=InputConfig(short_side=800, max_side=1333),
        loss=LossConfig(overlap="area", centerness="polar_iou"),
        optim=OptimConfig(
            lr_batch_size=8,
            batch_size=8,
            param_groups="original",  # PolarNeXt's rule, too
            warmup_lr=0.001,
        ),
        backbone_weights="ResNet50_Weights.IMAGENET1K_V1",
    )


def star_r50_3x() -> RunConfig:
    """Return `star-r50-1x` for 36 epochs, with short sides from 640 to 800 pixels."""
    run = star_r50_1x()
    return replace(
        run,
        name="star-r50-3x",
        input=replace(run.input, train_short_sides=(640, 800)),
        optim=replace(run.optim, epochs=36, lr_drops=(27 / 36, 33 / 36)),
    )


def star_convnext_t_3x() -> RunConfig:
    """Return `star-r50-3x` with ConvNeXt-T and timm's weights, which AdamW trains."""
    run = star_r50_3x()
    return replace(
        run,
        name="star-convnext-t-3x",
        model=replace(
            run.model, backbone="timm/convnext_tiny", backbone_norm="group", frozen_stages=0
        ),
        optim=replace(
            run.optim,
            optimizer="adamw",
            lr=1e-4,
            weight_decay=0.05,
            param_groups="matrices",
            warmup_lr=1e-5,
        ),
        backbone_weights="timm",
    )


STAR = {run().name: run for run in (star_r50_1x, star_r50_3x, star_convnext_t_3x)}
"""By name of the preset."""
