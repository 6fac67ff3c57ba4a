"""Known runs: functions that return a whole RunConfig, each derived from another by `replace`."""

from collections.abc import Callable
from dataclasses import replace

from polarmask.config import (
    InputConfig,
    LabelConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PostprocessConfig,
    RunConfig,
)
from polarmask.errors import ConfigError


def coco_r50_1x() -> RunConfig:
    """Return the paper's R-50 1x schedule: 12 epochs, batch 16, SGD, ImageNet weights."""
    return RunConfig(name="coco-r50-1x", backbone_weights="ResNet50_Weights.IMAGENET1K_V1")


def tiny() -> RunConfig:
    """Return a run that learns the bundled nuclei from scratch in minutes on two CPU cores."""
    return replace(
        coco_r50_1x(),
        name="tiny",
        model=ModelConfig(
            backbone="resnet18",
            backbone_norm="group",
            strides=(4, 8, 16),
            channels=64,
            tower_depth=2,
            box_branch=False,
        ),
        input=InputConfig(short_side=None, max_side=1024),
        labels=LabelConfig(level_ranges=((0, 24), (24, 48), (48, float("inf")))),
        loss=LossConfig(centerness="polar_iou"),
        optim=OptimConfig(
            optimizer="adamw",
            lr=2e-3,
            weight_decay=0.05,
            schedule="one_cycle",
            warmup_steps=20,
            batch_size=4,
            epochs=8,
            ema_decay=0.9,
        ),
        postprocess=PostprocessConfig(max_instances=500),
        augment="dihedral",
        backbone_weights=None,
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {"coco-r50-1x": coco_r50_1x, "tiny": tiny}


def preset(name: str) -> RunConfig:
    """Return a preset by name; ConfigError lists the known ones."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there are: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]()
