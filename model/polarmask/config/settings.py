"""Every setting of a run: typed, documented, and checked when a config is made.

A run is a `RunConfig`; presets are functions that return one (`polarmask.config.presets`). The
resolved config is stored in each checkpoint and model folder. Imports no torch: the gate and the
pipelines read configs, too.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import TypeAdapter

from polarmask.config.backbones import check_backbone, has_bottlenecks
from polarmask.config.input_settings import InputConfig
from polarmask.config.validation import FINITE as _FINITE
from polarmask.config.validation import FORBID_UNKNOWN as _FORBID_UNKNOWN
from polarmask.config.validation import limit as _limit
from polarmask.config.validation import read_settings
from polarmask.config.validation import require as _require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture. Saved inside every model, because weights mean nothing without it."""

    __pydantic_config__ = _FINITE

    backbone: str = "resnet50"
    """`resnet18`, `resnet50`, `resnet101`, `resnext101_64x4d` or, for CPUs, `mobilenet_v3_large`
    from torchvision; or `timm/NAME` with the name of a convolutional model of timm (extra
    `timm`)."""
    backbone_style: Literal["pytorch", "caffe"] = "pytorch"
    """Where a stage halves its map: `pytorch` at the 3x3, `caffe` at the 1x1 before it, as the
    weights were trained."""
    backbone_norm: Literal["batch", "frozen_batch", "group"] = "frozen_batch"
    """`frozen_batch` for pretrained weights; `group` to train from scratch: equal results for any
    number of processes. Takes the place of batch norm; layer norm, as in ConvNeXt, stays."""
    norm_channels: int = 0
    """Channels that group norm takes at a time; 0 makes 32 groups of any width, as in the paper's
    code. From 16 on, a CPU trains in a faster memory layout."""
    frozen_stages: int = 0
    """Number of first stages that do not learn: 1 is all up to stride 4 (the stem and layer1), 4
    the whole backbone."""
    dcn: bool = False
    """Deformable 3x3 convolutions: in backbone layers 2 to 4 (v1) and in the head towers (v2)."""
    num_classes: int = 80
    """Object categories, background not counted. `train` takes it from the data."""
    num_rays: int = 36
    """Rays per location; 36 is one every 10 degrees."""
    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Pixels per location of each pyramid level, each twice the one before."""
    channels: int = 256
    """Width of the pyramid and of the head towers."""
    tower_depth: int = 4
    """3x3 convolutions per head tower."""
    box_branch: bool = True
    """Predict boxes too, as the paper's code does; without it boxes enclose the polygon."""
    length_unit: Literal["stride", "pixel"] = "stride"
    """Unit of predicted lengths before the level's learned scale: the paper's code uses pixels."""
    first_ray: float = 1.0
    """Ray length that an untrained network predicts, in `length_unit`."""

    def __post_init__(self) -> None:
        """Reject architectures that can't be built."""
        check_backbone(self.backbone)
        _limit(720, num_rays=self.num_rays)
        _limit(10_000, num_classes=self.num_classes)
        _limit(1024, channels=self.channels)
        _limit(16, tower_depth=self.tower_depth)
        _limit(1024, norm_channels=self.norm_channels)
        _require(
            self.num_rays >= 4, f"num_rays is {self.num_rays}: a polygon needs at least 4 rays"
        )
        _require(
            self.norm_channels >= 0, f"norm_channels is {self.norm_channels}: must not be below 0"
        )
        _require(self.first_ray > 0, f"first_ray is {self.first_ray}: must be above 0")
        _require(self.num_classes >= 1, f"num_classes is {self.num_classes}: at least 1 is needed")
        _require(
            1 <= len(self.strides) <= 8 and self.strides[0] in (2, 4, 8, 16, 32),
            f"strides {self.strides[:9]} must be 1 to 8 and start at 2, 4, 8, 16 or 32",
        )
        _require(
            all(b == 2 * a for a, b in zip(self.strides, self.strides[1:], strict=False)),
            f"strides {self.strides} must double from level to level",
        )
        _require(
            self.channels >= 32 and self.channels % 32 == 0,
            f"channels is {self.channels}: group norm needs a multiple of 32",
        )
        _require(self.tower_depth >= 1, f"tower_depth is {self.tower_depth}: at least 1 is needed")
        _require(
            0 <= self.frozen_stages <= 4,
            f"frozen_stages is {self.frozen_stages}: a backbone has 0 to 4 that can be frozen",
        )
        _require(
            has_bottlenecks(self.backbone) or (self.backbone_style == "pytorch" and not self.dcn),
            f"{self.backbone} has no caffe style and no dcn: its blocks are not 1x1, 3x3, 1x1; "
            "use resnet50 or larger",
        )


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which location learns which object. Part of the ray-label store's identity."""

    __pydantic_config__ = _FORBID_UNKNOWN

    mode: Literal["exact", "original"] = "exact"
    """`original` repeats the rules of the paper's code, faults included (ADR 0009)."""
    parts: Literal["largest", "all"] = "largest"
    """`all`: each part of an object is learned, and found again as one instance (ADR 0010)."""
    level_ranges: tuple[tuple[float, float], ...] = (
        (0, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, float("inf")),
    )
    """Per level, the farthest box side from the location in pixels of the resized image."""
    center_radius: float = 1.5
    """Locations within this many strides of the mass centre are candidates."""
    min_area: float = 4.0
    """Smaller objects (pixels of the resized image) are ignored, neither object nor background.
    Not used by `original`, which takes what it drops for background."""

    def __post_init__(self) -> None:
        """Reject ranges that no object fits."""
        _require(
            0 < self.center_radius < float("inf"),
            f"center_radius is {self.center_radius}: must be above 0 and finite",
        )
        _require(
            abs(self.min_area) < float("inf"),
            f"min_area is {self.min_area}: must be a finite number",
        )
        _require(
            len(self.level_ranges) <= 8, "there are more than 8 level_ranges: give one per stride"
        )
        _require(
            all(low < high for low, high in self.level_ranges),
            f"level_ranges {self.level_ranges}: each needs low < high",
        )
        _require(
            len(self.level_ranges) >= 1 and self.level_ranges[-1][1] == float("inf"),
            f'level_ranges {self.level_ranges}: the last must end with "inf", or the largest '
            "objects belong to no level",
        )
        _require(
            self.mode == "exact" or self.parts == "largest",
            "labels.mode original knows the largest part only; use labels.parts=largest",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What training minimises."""

    __pydantic_config__ = _FINITE

    focal_alpha: float = 0.25
    """Weight of positive categories in the focal loss; negatives weigh 1 - this."""
    focal_gamma: float = 2.0
    """How strongly the focal loss reduces the weight of easy examples; 0 does not."""
    overlap: Literal["rays", "area"] = "rays"
    """What overlap of predicted and true rays compares: lengths, as the paper's code, or areas."""
    centerness: Literal["polar", "soft", "polar_iou"] = "soft"
    """Quality target: sqrt(min/max ray), its quadrant form (PolarMask++), or the IoU reached."""
    normalizer: Literal["global", "original"] = "global"
    """Sums over all processes divide the losses; `original` uses those of each process, counts
    images among the positives of the class loss, and boxes have the original's extra pixel."""

    def __post_init__(self) -> None:
        """Reject losses that reward mistakes."""
        _require(0 < self.focal_alpha < 1, f"focal_alpha is {self.focal_alpha}: must be in (0, 1)")
        _require(self.focal_gamma >= 0, f"focal_gamma is {self.focal_gamma}: must not be below 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser, learning rate, schedule, batch size."""

    __pydantic_config__ = _FINITE

    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    """`sgd` has momentum 0.9; `muon` takes steps of the size of `adamw`, in all directions of a
    weight matrix alike (`training/muon.py`)."""
    lr: float = 0.01
    """Peak learning rate for `lr_batch_size` images a step; `train` scales it to `batch_size`."""
    lr_batch_size: int = 16
    """Images per step that `lr` was chosen for."""
    weight_decay: float = 1e-4
    """Weight decay of the parameters that `param_groups` selects."""
    param_groups: Literal["matrices", "original"] = "matrices"
    """Which parameters decay: weights of two or more dimensions, or as in the paper's code all but
    biases, which then learn at twice the rate."""
    schedule: Literal["step", "one_cycle"] = "step"
    """`step` warms up linearly and drops tenfold at `lr_drops`; `one_cycle` rises and anneals."""
    warmup_steps: int = 500
    """Optimiser steps with a rising learning rate, at most a third of all."""
    warmup_lr: float = 0.0
    """Learning rate that the warm-up starts from; 0 starts near zero."""
    lr_drops: tuple[float, ...] = (8 / 12, 11 / 12)
    """When the rate drops, as fractions of all steps. Used by `step` only."""
    batch_size: int = 16
    """Images per step over all processes."""
    epochs: float = 12
    """Passes over the training images, or over the area of those in crops; a fraction is
    allowed."""
    grad_clip: float = 35.0
    """Largest L2 norm of the gradient."""
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 turns averaging off."""
    amp: Literal["off", "auto", "bf16", "fp16"] = "auto"
    """Mixed precision; `auto` is bf16 on a GPU or CPU that computes it, fp16 on an older GPU, off
    on an older CPU."""

    def __post_init__(self) -> None:
        """Reject runs that can't learn."""
        _require(self.lr > 0, f"lr is {self.lr}: must be above 0")
        _require(self.batch_size >= 1, f"batch_size is {self.batch_size}: at least 1 is needed")
        _require(
            self.lr_batch_size >= 1, f"lr_batch_size is {self.lr_batch_size}: at least 1 is needed"
        )
        _require(self.warmup_lr >= 0, f"warmup_lr is {self.warmup_lr}: must not be below 0")
        _require(self.epochs > 0, f"epochs is {self.epochs}: must be above 0")
        _require(self.grad_clip > 0, f"grad_clip is {self.grad_clip}: must be above 0; 1e9 is off")
        _require(
            self.optimizer != "muon" or self.param_groups == "matrices",
            "param_groups original is for sgd and adamw: muon has groups of its own",
        )
        _require(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay}: must be in [0, 1)")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} is {value}: must not be below 0")
        _require(
            all(0 < drop <= 1 for drop in self.lr_drops),
            f"lr_drops {self.lr_drops}: each is a fraction of all steps, in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """From raw predictions to instances."""

    __pydantic_config__ = _FINITE

    score: Literal["product", "original"] = "product"
    """Class probability times quality, or the whole decoding of the original: probability times
    (quality + 0.5), suppression in pixels of the given image, vertices cut to whole pixels."""
    score_threshold: float = 0.05
    """Candidates whose class score is at or below this are dropped."""
    pre_nms_top_k: int = 1000
    """Candidates kept per level; `original` counts locations."""
    nms_iou: float = 0.5
    """Threshold of non-maximum suppression (NMS): of two boxes of one category whose IoU is above
    this, the one with the lower score is dropped."""
    max_instances: int = 100
    """Instances kept per image, or per tile of an image that is cut into tiles."""

    def __post_init__(self) -> None:
        """Reject thresholds outside their range."""
        _limit(100_000, pre_nms_top_k=self.pre_nms_top_k, max_instances=self.max_instances)
        _require(self.pre_nms_top_k >= 1, "pre_nms_top_k must be at least 1")
        _require(0 <= self.score_threshold < 1, "score_threshold must be in [0, 1)")
        _require(0 < self.nms_iou <= 1, "nms_iou must be in (0, 1]")
        _require(self.max_instances >= 1, "max_instances must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run, whole."""

    __pydantic_config__ = _FINITE

    name: str
    """Name of the preset that the run was derived from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture of the network."""
    input: InputConfig = field(default_factory=InputConfig)
    """How images are resized and normalised."""
    labels: LabelConfig = field(default_factory=LabelConfig)
    """Which location learns which object."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What training minimises."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser, schedule and batch size."""
    postprocess: PostprocessConfig = field(default_factory=PostprocessConfig)
    """Thresholds, among them those of non-maximum suppression (NMS)."""
    augment: Literal["off", "flip", "dihedral"] = "flip"
    """`flip` mirrors left-right; `dihedral` adds up-down and quarter turns, for data without up."""
    backbone_weights: str | None = None
    """Pretrained weights of the backbone: file, URL, torchvision name, or `timm` for those that
    timm downloads; None for no weights."""
    validate_epochs: float = 0.0
    """Epochs between evaluations of mask AP on the val split, of which the best weights are kept;
    0 evaluates nothing and keeps the last weights."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""

    def __post_init__(self) -> None:
        """Reject parts that don't fit together."""
        _require(
            len(self.labels.level_ranges) == len(self.model.strides),
            f"{len(self.labels.level_ranges)} level_ranges for {len(self.model.strides)} strides: "
            "give one range per stride",
        )
        _require(
            self.validate_epochs >= 0,
            f"validate_epochs is {self.validate_epochs}: must be 0 (off) or above",
        )
        _require(0 <= self.seed < 2**63, f"seed is {self.seed}: must be 0 or above, below 2**63")
        _require(
            self.model.backbone_norm != "frozen_batch" or self.backbone_weights is not None,
            "backbone_norm frozen_batch keeps the statistics of pretrained weights and there are "
            "none; name them, --set backbone_weights=FILE, or train from scratch: "
            "--set model.backbone_norm=group",
        )
        _require(
            self.labels.mode == "exact"
            or (self.model.num_rays % 4 == 0 and 360 % self.model.num_rays == 0),
            f"labels.mode original measures whole degrees: num_rays {self.model.num_rays} must "
            "divide 360 and be a multiple of 4",
        )
        _require(
            self.labels.mode == "exact" or not self.input.crop,
            "labels.mode original takes whole images; set input.crop=0",
        )
        _require(
            self.labels.parts == "largest" or self.model.box_branch,
            "labels.parts all finds the parts of an object by their common box; "
            "set model.box_branch=true",
        )
        multiple = {"off": 1, "flip": 2, "dihedral": 4}[self.augment]
        _require(
            self.model.num_rays % multiple == 0,
            f"augment {self.augment} needs num_rays to be a multiple of {multiple}, "
            f"not {self.model.num_rays}: rays must map onto rays",
        )

    @property
    def fresh_labels(self) -> bool:
        """Whether labels differ from epoch to epoch by more than a mirror, so none are stored.

        The assignment depends on scale and crop, and the original's whole-pixel arithmetic on
        mirroring.
        """
        changes = self.input.train_short_sides is not None or self.input.crop > 0
        return changes or self.labels.mode == "original"


_ADAPTER: TypeAdapter[RunConfig] = TypeAdapter(RunConfig)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return plain JSON-ready data; infinity becomes the string "inf"."""
    plain: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    plain["labels"]["level_ranges"] = [
        [low, "inf" if high == float("inf") else high] for low, high in config.labels.level_ranges
    ]
    return plain


def from_dict(data: dict[str, Any]) -> RunConfig:
    """Read a config; unknown keys and wrong types raise ConfigError naming the field."""
    return read_settings(RunConfig, data)
