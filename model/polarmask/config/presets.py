"""Known runs: functions that return a whole RunConfig, each derived from another by `replace`."""

from collections.abc import Callable
from dataclasses import replace

from polarmask.config.input_settings import InputConfig
from polarmask.config.published import PUBLISHED, coco_r50_1x
from polarmask.config.settings import (
    LabelConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PostprocessConfig,
    RunConfig,
)
from polarmask.config.star import STAR
from polarmask.errors import ConfigError
from polarmask.system.did_you_mean import did_you_mean
from polarmask.system.tables import aligned

ORIGINAL_SUFFIX = "-original"
AUTO = "auto"
"""The run that fits the data: `evaluation.auto_preset` makes it."""


def tiny() -> RunConfig:
    """Return a run that learns the bundled nuclei from scratch in minutes on two CPU cores."""
    return replace(
        coco_r50_1x(),
        name="tiny",
        model=ModelConfig(
            backbone="resnet18",
            backbone_norm="group",
            norm_channels=16,
            # Fine and narrow: nuclei need locations and sharp features, not width or depth.
            strides=(2, 4, 8),
            channels=32,
            tower_depth=2,
            box_branch=False,
            first_ray=2.2,
        ),
        input=InputConfig(short_side=None, max_side=1024),
        labels=LabelConfig(level_ranges=((0, 10), (10, 24), (24, float("inf")))),
        loss=LossConfig(overlap="area", centerness="polar_iou"),
        optim=OptimConfig(
            optimizer="muon",
            lr=1e-3,
            lr_batch_size=2,
            weight_decay=0.05,
            schedule="one_cycle",
            warmup_steps=20,
            batch_size=2,
            epochs=8,
            ema_decay=0.9,
        ),
        postprocess=PostprocessConfig(max_instances=500),
        augment="dihedral",
        backbone_weights=None,
    )


def light() -> RunConfig:
    """Return a run for servers without a GPU: MobileNet, a narrow head, sides up to 640 pixels."""
    return replace(
        tiny(),
        name="light",
        model=ModelConfig(
            backbone="mobilenet_v3_large",
            backbone_norm="group",
            norm_channels=16,
            channels=96,
            tower_depth=2,
            box_branch=False,
            first_ray=2.0,
        ),
        input=InputConfig(short_side=640, max_side=640),
        labels=LabelConfig(),
    )


def original(run: RunConfig) -> RunConfig:
    """Return a run with the algorithm of the paper's code, weak points included.

    Backbone, schedule and batch stay; input, labels, losses, optimiser groups and scores become
    the original's, and boxes are predicted.
    """
    return replace(
        run,
        name=run.name + ORIGINAL_SUFFIX,
        model=replace(
            run.model, length_unit="pixel", first_ray=1.0, box_branch=True, norm_channels=0
        ),
        input=_stretched(run.input),
        labels=replace(run.labels, mode="original", parts="largest"),
        loss=replace(run.loss, overlap="rays", centerness="polar", normalizer="original"),
        optim=replace(
            run.optim,
            optimizer="sgd" if run.optim.optimizer == "sgd" else "adamw",
            param_groups="original",
        ),
        postprocess=replace(run.postprocess, score="original"),
    )


def _stretched(images: InputConfig) -> InputConfig:
    """Drop the aspect ratio, unless images are not resized."""
    if images.short_side is None:
        return images
    return replace(images, keep_ratio=False, multiple=128)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    **{name: run.make for name, run in PUBLISHED.items()},
    **STAR,
    "tiny": tiny,
    "light": light,
}


def preset(name: str) -> RunConfig:
    """Return a preset by name, or with `-original` behind it the `original` form of it.

    Raises:
        ConfigError: No such preset; lists the known ones.
    """
    base = name.removesuffix(ORIGINAL_SUFFIX)
    if name == AUTO:
        raise ConfigError(f"preset {AUTO} fits data: name the data, too")
    if base not in PRESETS:
        raise ConfigError(
            f"no preset {base!r}{did_you_mean(base, [AUTO, *PRESETS])}; there are: "
            f"{', '.join(preset_names())}; as PRESET{ORIGINAL_SUFFIX}, each but {AUTO} has the "
            "algorithm of the paper's code"
        )
    return PRESETS[base]() if base == name else original(PRESETS[base]())


def preset_names() -> list[str]:
    """Return what `--preset` takes, `auto` first."""
    return [AUTO, *sorted(PRESETS)]


def presets_table() -> str:
    """Return the presets as aligned text, one a line; AP is published mask AP in percent."""
    rows = [("preset", "backbone", "epochs", "input", "GPUs x images", "lr", "mask AP")]
    for name, make in PRESETS.items():
        run, known = make(), PUBLISHED.get(name)
        deformable = " DCN" if run.model.dcn else ""
        rows.append(
            (
                name,
                run.model.backbone + deformable,
                f"{run.optim.epochs:g}",
                _input_text(run.input),
                f"{known.gpus} x {known.images_per_gpu}" if known else f"{run.optim.batch_size}",
                f"{run.optim.lr:g}",
                f"{known.mask_ap}" if known else "-",
            )
        )
    auto = (
        f"{AUTO} (the default): strides, rays, size and epochs that fit the data; needs no network"
    )
    return f"{aligned(rows)}\n{auto}"


def _input_text(images: InputConfig) -> str:
    if images.short_side is None:
        return "as it is"
    low, high = images.train_short_sides or (images.short_side, images.short_side)
    return f"{images.max_side} x {low}" + (f"-{high}" if high > low else "")
