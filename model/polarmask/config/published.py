"""The fifteen published runs of the paper's authors on COCO, each derived from another.

Backbone, schedule, batch, learning rate, warm-up and input size are the published ones. Labels,
losses and scores are ours; `presets.original` turns those back too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from polarmask.config.settings import InputConfig, ModelConfig, OptimConfig, RunConfig

_WEIGHTS = "https://download.openmmlab.com/pretrain/third_party/"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known about a published run."""

    make: Callable[[], RunConfig]
    gpus: int
    images_per_gpu: int
    mask_ap: float
    """COCO mask AP on val2017, in percent, of the authors' own code and labels."""


PUBLISHED: dict[str, Published] = {}


def _published(
    *, gpus: int, images_per_gpu: int, mask_ap: float
) -> Callable[[Callable[[], RunConfig]], Callable[[], RunConfig]]:
    """List a run with the facts known about it."""

    def enter(make: Callable[[], RunConfig]) -> Callable[[], RunConfig]:
        PUBLISHED[make().name] = Published(
            make=make, gpus=gpus, images_per_gpu=images_per_gpu, mask_ap=mask_ap
        )
        return make

    return enter


def _r101(run: RunConfig, name: str) -> RunConfig:
    return replace(
        run,
        name=name,
        model=replace(run.model, backbone="resnet101"),
        backbone_weights=_WEIGHTS + "resnet101_caffe-3ad79236.pth",
    )


def _x101(run: RunConfig, name: str) -> RunConfig:
    """X-101 was pretrained in PyTorch: its own stride, channel order and means."""
    ours = InputConfig()
    return replace(
        run,
        name=name,
        model=replace(run.model, backbone="resnext101_64x4d", backbone_style="pytorch"),
        input=replace(run.input, mean=ours.mean, std=ours.std, channel_order="rgb"),
        backbone_weights=_WEIGHTS + "resnext101_64x4d-ee2c6f71.pth",
    )


def _dcn(run: RunConfig, name: str) -> RunConfig:
    return replace(run, name=name, model=replace(run.model, dcn=True))


def _batch(optim: OptimConfig, batch_size: int, *, lr: float) -> OptimConfig:
    return replace(optim, batch_size=batch_size, lr_batch_size=batch_size, lr=lr)


@_published(gpus=4, images_per_gpu=4, mask_ap=29.2)
def coco_r50_1x() -> RunConfig:
    """Return R-50 with Caffe's weights: 12 epochs, batch 16, 1280 x 768."""
    return RunConfig(
        name="coco-r50-1x",
        model=ModelConfig(backbone="resnet50", backbone_style="caffe", frozen_stages=1),
        input=InputConfig(
            short_side=768,
            max_side=1280,
            mean=(122.7717, 115.9465, 102.9801),
            std=(1.0, 1.0, 1.0),
            channel_order="bgr",
        ),
        optim=OptimConfig(
            lr=0.01,
            lr_batch_size=16,
            batch_size=16,
            warmup_steps=500,
            warmup_lr=0.01 / 3,
            lr_drops=(8 / 12, 11 / 12),
            epochs=12,
        ),
        backbone_weights=_WEIGHTS + "resnet50_caffe-788b5fa3.pth",
    )


@_published(gpus=4, images_per_gpu=4, mask_ap=30.7)
def coco_r101_1x() -> RunConfig:
    """Return the 1x run with R-101."""
    return _r101(coco_r50_1x(), "coco-r101-1x")


@_published(gpus=8, images_per_gpu=2, mask_ap=32.5)
def coco_x101_1x() -> RunConfig:
    """Return the 1x run with X-101-64x4d."""
    return _x101(coco_r50_1x(), "coco-x101-1x")


@_published(gpus=32, images_per_gpu=4, mask_ap=29.1)
def coco_r50_1x_32gpu() -> RunConfig:
    """Return R-50 in batches of 128: two epochs longer, to pay for the longer warm-up."""
    run = coco_r50_1x()
    optim = replace(
        _batch(run.optim, 128, lr=0.08),
        warmup_steps=2000,
        lr_drops=(10 / 14, 13 / 14),
        epochs=14,
    )
    return replace(run, name="coco-r50-1x-32gpu", optim=optim)


@_published(gpus=32, images_per_gpu=4, mask_ap=30.4)
def coco_r101_1x_32gpu() -> RunConfig:
    """Return the 1x run in large batches with R-101."""
    return _r101(coco_r50_1x_32gpu(), "coco-r101-1x-32gpu")


@_published(gpus=32, images_per_gpu=2, mask_ap=32.6)
def coco_x101_1x_32gpu() -> RunConfig:
    """Return the 1x run with X-101, in batches of 64."""
    run = _x101(coco_r50_1x_32gpu(), "coco-x101-1x-32gpu")
    return replace(run, optim=_batch(run.optim, 64, lr=0.04))


@_published(gpus=32, images_per_gpu=4, mask_ap=32.0)
def coco_r50_dcn_1x_32gpu() -> RunConfig:
    """Return the 1x run in large batches with deformable R-50."""
    return _dcn(coco_r50_1x_32gpu(), "coco-r50-dcn-1x-32gpu")


@_published(gpus=32, images_per_gpu=4, mask_ap=33.5)
def coco_r101_dcn_1x_32gpu() -> RunConfig:
    """Return the 1x run in large batches with deformable R-101."""
    return _dcn(coco_r101_1x_32gpu(), "coco-r101-dcn-1x-32gpu")


@_published(gpus=32, images_per_gpu=2, mask_ap=34.9)
def coco_x101_dcn_1x_32gpu() -> RunConfig:
    """Return the 1x run with deformable X-101, in batches of 64."""
    return _dcn(coco_x101_1x_32gpu(), "coco-x101-dcn-1x-32gpu")


@_published(gpus=32, images_per_gpu=1, mask_ap=30.5)
def coco_r50_2x_32gpu() -> RunConfig:
    """Return R-50 for 26 epochs in batches of 32, short sides of 640 to 800."""
    run = coco_r50_1x_32gpu()
    return replace(
        run,
        name="coco-r50-2x-32gpu",
        input=replace(run.input, short_side=800, max_side=1333, train_short_sides=(640, 800)),
        optim=replace(_batch(run.optim, 32, lr=0.02), lr_drops=(18 / 26, 24 / 26), epochs=26),
    )


@_published(gpus=32, images_per_gpu=1, mask_ap=31.9)
def coco_r101_2x_32gpu() -> RunConfig:
    """Return the 2x run with R-101."""
    return _r101(coco_r50_2x_32gpu(), "coco-r101-2x-32gpu")


@_published(gpus=32, images_per_gpu=1, mask_ap=33.5)
def coco_x101_2x_32gpu() -> RunConfig:
    """Return the 2x run with X-101."""
    return _x101(coco_r50_2x_32gpu(), "coco-x101-2x-32gpu")


@_published(gpus=32, images_per_gpu=1, mask_ap=33.3)
def coco_r50_dcn_2x_32gpu() -> RunConfig:
    """Return the 2x run with deformable R-50."""
    return _dcn(coco_r50_2x_32gpu(), "coco-r50-dcn-2x-32gpu")


@_published(gpus=32, images_per_gpu=1, mask_ap=34.3)
def coco_r101_dcn_2x_32gpu() -> RunConfig:
    """Return the 2x run with deformable R-101."""
    return _dcn(coco_r101_2x_32gpu(), "coco-r101-dcn-2x-32gpu")


@_published(gpus=32, images_per_gpu=1, mask_ap=35.9)
def coco_x101_dcn_2x_32gpu() -> RunConfig:
    """Return the 2x run with deformable X-101."""
    return _dcn(coco_x101_2x_32gpu(), "coco-x101-dcn-2x-32gpu")
