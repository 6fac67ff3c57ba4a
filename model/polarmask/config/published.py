"""The fifteen published runs of the paper's authors on COCO, as a table.

Backbone, schedule, batch, learning rate, warm-up and input size are the published ones. Labels,
losses and scores are ours; `presets.original` changes those to the paper's.
"""

from dataclasses import dataclass, replace
from typing import Any

from polarmask.config.input_settings import InputConfig
from polarmask.config.settings import ModelConfig, OptimConfig, RunConfig

_WEIGHTS = "https://download.openmmlab.com/pretrain/third_party/"
_LR_PER_IMAGE = 0.01 / 16
"""The authors scaled the learning rate with the batch size."""

# Networks: start from weights of Caffe (its stride, channel order and means), X-101
# from weights of PyTorch.
_CAFFE = InputConfig(mean=(122.7717, 115.9465, 102.9801), std=(1.0, 1.0, 1.0), channel_order="bgr")
_BACKBONES: dict[str, tuple[Any, str, InputConfig]] = {
    "r50": ("resnet50", "resnet50_caffe-788b5fa3.pth", _CAFFE),
    "r101": ("resnet101", "resnet101_caffe-3ad79236.pth", _CAFFE),
    "x101": ("resnext101_64x4d", "resnext101_64x4d-ee2c6f71.pth", InputConfig()),
}

# Schedules: settings of the input, and of the optimiser with the epochs of the drops.
_SCHEDULES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "1x": (
        {"short_side": 768, "max_side": 1280},
        {"warmup_steps": 500, "lr_drops": (8 / 12, 11 / 12), "epochs": 12},
    ),
    # Large batches: two epochs longer, to make up for the longer warm-up.
    "1x-32gpu": (
        {"short_side": 768, "max_side": 1280},
        {"warmup_steps": 2000, "lr_drops": (10 / 14, 13 / 14), "epochs": 14},
    ),
    "2x-32gpu": (
        {"short_side": 800, "max_side": 1333, "train_short_sides": (640, 800)},
        {"warmup_steps": 2000, "lr_drops": (18 / 26, 24 / 26), "epochs": 26},
    ),
}


@dataclass(frozen=True)
class Published:
    """One published run."""

    backbone: str
    """Key of `_BACKBONES`."""
    dcn: bool
    """Deformable convolutions in the backbone's later stages."""
    schedule: str
    """Key of `_SCHEDULES`."""
    gpus: int
    images_per_gpu: int
    mask_ap: float
    """COCO mask AP on val2017, in percent, of the authors' own code and labels."""

    @property
    def name(self) -> str:
        """Name of the preset."""
        return f"coco-{self.backbone}{'-dcn' if self.dcn else ''}-{self.schedule}"

    def make(self) -> RunConfig:
        """Return the whole run."""
        backbone, weights, images = _BACKBONES[self.backbone]
        sizes, optim = _SCHEDULES[self.schedule]
        batch_size = self.gpus * self.images_per_gpu
        return RunConfig(
            name=self.name,
            model=ModelConfig(
                backbone=backbone,
                backbone_style="caffe" if images is _CAFFE else "pytorch",
                frozen_stages=1,
                dcn=self.dcn,
            ),
            input=replace(images, **sizes),
            optim=OptimConfig(
                lr=_LR_PER_IMAGE * batch_size,
                lr_batch_size=batch_size,
                batch_size=batch_size,
                warmup_lr=0.01 / 3,
                **optim,
            ),
            backbone_weights=_WEIGHTS + weights,
        )


_RUNS = (
    Published("r50", False, "1x", 4, 4, 29.2),
    Published("r101", False, "1x", 4, 4, 30.7),
    Published("x101", False, "1x", 8, 2, 32.5),
    Published("r50", False, "1x-32gpu", 32, 4, 29.1),
    Published("r101", False, "1x-32gpu", 32, 4, 30.4),
    Published("x101", False, "1x-32gpu", 32, 2, 32.6),
    Published("r50", True, "1x-32gpu", 32, 4, 32.0),
    Published("r101", True, "1x-32gpu", 32, 4, 33.5),
    Published("x101", True, "1x-32gpu", 32, 2, 34.9),
    Published("r50", False, "2x-32gpu", 32, 1, 30.5),
    Published("r101", False, "2x-32gpu", 32, 1, 31.9),
    Published("x101", False, "2x-32gpu", 32, 1, 33.5),
    Published("r50", True, "2x-32gpu", 32, 1, 33.3),
    Published("r101", True, "2x-32gpu", 32, 1, 34.3),
    Published("x101", True, "2x-32gpu", 32, 1, 35.9),
)

PUBLISHED = {run.name: run for run in _RUNS}
"""By name of the preset, in the order of the authors' table."""


def coco_r50_1x() -> RunConfig:
    """Return R-50 with Caffe's weights: 12 epochs, batch 16, 1280 x 768."""
    return PUBLISHED["coco-r50-1x"].make()
