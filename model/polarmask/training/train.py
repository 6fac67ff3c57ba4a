"""The training loop. One process or many, CPU or CUDA; a stopped run resumes where it stopped.

Learning-rate schedule: `optim.learning_rate`, set by `OptimConfig` in `config/settings.py`.
Checkpoint: once per epoch, at the last step, and when a signal stops the run (`_run_steps`).
Validation: every `validate_epochs` of the config, if that is not 0 (`validation.Validator`).
Step: `training_run.TrainingRun.advance`. Batches: `dataset.load_steps`.
"""

import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

from polarmask.config.settings import RunConfig, to_dict
from polarmask.data.coco import CocoData, read_categories
from polarmask.data.crop import crops_text
from polarmask.data.match_categories import require_same_meaning
from polarmask.data.summary import SplitSummary
from polarmask.errors import ConfigError, LabelStoreError
from polarmask.evaluation.recommend import shrink_warning
from polarmask.inference.model_folder import ModelCard, is_model_folder, load_model, save_model
from polarmask.labels.precompute import data_hash, find_splits, load_splits, precompute
from polarmask.labels.store import LabelStore
from polarmask.network.backbone import check_buildable
from polarmask.system.device import deterministic
from polarmask.system.distributed import all_gather, barrier, is_first, world_size
from polarmask.system.files import write_text
from polarmask.system.signals import StopRequest, stop_request
from polarmask.training.dataset import TrainingImages, load_steps
from polarmask.training.initial import InitialWeights
from polarmask.training.operating_score import find_operating_score
from polarmask.training.progress import Progress
from polarmask.training.run_folder import BEST, CHECKPOINT, CONFIG, METRICS, PIXELS, RunData
from polarmask.training.tensorboard import TensorBoard, open_tensorboard
from polarmask.training.training_run import TrainingRun
from polarmask.training.validation import Validator

logger = logging.getLogger(__name__)

_FEW_STEPS = 300
"""With steps of 4 images, `tiny` began to find nuclei after about two hundred."""


class Observer(Protocol):
    """Wants to know how a run gets on."""

    def begin(self, data: Sequence[CocoData], labels: LabelStore, config: RunConfig) -> None:
        """Take the splits and labels of a run whose folder holds `config.json` and `data.json`."""

    def update(self) -> None:
        """Look at the run folder again: something was saved."""


@dataclass(frozen=True)
class TrainOptions:
    """Where and how to run. Nothing here changes what is learned, except for rounding."""

    data: Path
    out: Path
    labels: Path | None = None
    """Label store; None makes one in the run folder."""
    strict: bool = False
    """Refuse data of which an image or object is left out."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loader_workers: int = 0
    """Loader processes per training process; 0 loads in the training process."""
    passes: int = 1
    """Gradient-accumulation steps per process, to save memory."""
    compiled: bool = False
    """Compile the network with torch.compile: minutes at the start, then faster steps."""
    deterministic: bool = False
    """Bitwise reproducible on the same machine; slower on CUDA."""
    tensorboard: bool = False
    """Write curves and overlays to `tensorboard/` in the run folder."""
    initial: InitialWeights | None = None
    """Weights to start from; None starts afresh."""
    provenance: dict[str, str] | None = None
    observer: "Observer | None" = None
    """Called by the first process as the training goes on; `report.run_pages.RunPages` is one."""
    stop_after: int | None = None
    """Stop at this step, as if interrupted; the next call resumes."""


def train(config: RunConfig, options: TrainOptions) -> Path:
    """Train, or resume training, and return the model folder.

    Writes `config.json`, `data.json`, `checkpoint.pt` and `metrics.jsonl` to the run folder and at
    the end `model/`: the last weights (averaged if the run averages) or, in a run with validation,
    the best ones.

    Raises:
        DataError, LabelStoreError: Data or labels can't be used.
        CheckpointError: The run folder belongs to a run with another config or other data.
        TrainingError: The loss became NaN or infinite.
        TrainingStopped: SIGTERM, SIGHUP or Ctrl-C came; the checkpoint holds the last step.
    """
    _check_batch_size(config, options)
    check_buildable(config.model)
    with deterministic(options.deterministic):
        data = _TrainingData.open(config, options)
        run = TrainingRun(
            data.config,
            data.total_steps,
            categories=data.coco.categories,
            data_hash=data.data_hash,
            checkpoint=options.out / CHECKPOINT,
            device=options.device,
        )
        run.begin(initial=options.initial, compiled=options.compiled)
        if is_first():
            write_text(options.out / CONFIG, json.dumps(to_dict(data.config), indent=1))
            RunData(data.total_steps, tuple(data.summaries)).write(options.out)
            for each in data.summaries:
                logger.info("%s", each.describe())
            if data.config.input.crop:
                logger.info("%s", crops_text(data.coco.images, data.config.input))
            if not run.step:
                for warning in _warnings(data, afresh=options.initial is None):
                    logger.warning("%s", warning)
            if options.observer is not None:
                options.observer.begin(data.splits, data.images.labels, data.config)
        first_step = run.step
        progress = Progress(
            options.out / METRICS, run.step, data.total_steps, config.optim.batch_size
        )
        _run_steps(run, data, options, progress)
        folder = options.out / "model"
        is_due = run.step > first_step or not is_model_folder(folder)
        is_done = run.step == data.total_steps
        if is_done and all_gather(is_due)[0]:  # machines need not share a disk
            _write_model(folder, run, data, options, progress)
        _tell(options)
        barrier()
        if is_done:  # on all processes: they may have no folder in common
            shutil.rmtree(options.out / PIXELS, ignore_errors=True)
        return folder


def _tell(options: TrainOptions) -> None:
    if options.observer is not None and is_first():
        options.observer.update()


def _warnings(data: "_TrainingData", *, afresh: bool) -> Iterator[str]:
    """Yield what is likely to make a training useless."""
    if afresh and data.total_steps < _FEW_STEPS:
        yield _few_steps(data)
    if text := shrink_warning(data.coco, data.config):
        yield text


def _few_steps(data: "_TrainingData") -> str:
    enough = math.ceil(_FEW_STEPS * data.config.optim.batch_size / len(data.images))
    return (
        f"{data.total_steps} steps are few: from scratch, most models find nothing in fewer than "
        f"{_FEW_STEPS}; raise optim.epochs, --set optim.epochs={enough} or more"
    )


def _check_batch_size(config: RunConfig, options: TrainOptions) -> None:
    if config.optim.batch_size % (world_size() * options.passes):
        times = f" times {options.passes} passes" if options.passes > 1 else ""
        raise ConfigError(
            f"batch_size {config.optim.batch_size} does not divide among {world_size()} "
            f"processes{times}; change optim.batch_size or the number of processes"
        )
    if options.passes > 1 and config.model.backbone_norm == "batch":
        raise ConfigError(
            "batch norm normalises each pass alone, so several do not add up to one large batch; "
            "use --passes 1, or --set model.backbone_norm=group"
        )


@dataclass(frozen=True)
class _TrainingData:
    """The data of a run, for training and validation."""

    config: RunConfig
    """With the number of classes of the data."""
    coco: CocoData
    images: TrainingImages
    validation: CocoData | None
    """Usable images of the val split; None in a run without validation."""
    data_hash: str

    @classmethod
    def open(cls, config: RunConfig, options: TrainOptions) -> "_TrainingData":
        """Load annotations and labels."""
        splits = ("train", "val") if config.validate_epochs else ("train",)
        loaded = load_splits(options.data, splits, strict=options.strict, config=config.input)
        if "val" not in splits and "val" in find_splits(options.data):
            _compare_later_split(loaded[0], options.data)
        store, hashes = _open_labels(config, options, splits)
        store.summary("train").require_learnable(str(options.data))
        # Images that can't be decoded were left out when the labels were made.
        coco = {
            each.split: each.only(set(store.image_ids(each.split)), store.data(each.split))
            for each in loaded
        }
        for each in coco.values():
            each.summary.require_complete(strict=options.strict)
        categories = len(coco["train"].categories)
        config = replace(config, model=replace(config.model, num_classes=categories))
        images = TrainingImages(coco["train"], store, config, pixels=options.out / PIXELS)
        return cls(config, coco["train"], images, coco.get("val"), hashes["train"])

    @property
    def splits(self) -> list[CocoData]:
        """Usable images of the splits."""
        return [each for each in (self.coco, self.validation) if each is not None]

    @property
    def summaries(self) -> list[SplitSummary]:
        """What of each split is used."""
        return [each.summary for each in self.splits]

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        optim = self.config.optim
        return max(1, math.ceil(optim.epochs * len(self.images) / optim.batch_size))

    def card(self, options: TrainOptions) -> ModelCard:
        """Return what is known of the model before it is trained."""
        training: dict[str, float] = {"image_side": self.images.longest_side}
        return ModelCard(self.config, self.coco.categories, options.provenance or {}, training)

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps that see each image once, or the area of those in crops."""
        return len(self.images) / self.config.optim.batch_size


def _compare_later_split(train_data: CocoData, data: Path) -> None:
    """Find now what an evaluation after the training would: other categories in the val split."""
    require_same_meaning(
        train_data.categories,
        read_categories(data, "val"),
        known_by="the train split",
        place=f"{data}, split val",
    )


def _open_labels(
    config: RunConfig, options: TrainOptions, splits: tuple[str, ...]
) -> tuple[LabelStore, dict[str, str]]:
    """Make or open the label store; return it with the hashes of the annotations."""
    hashes = {split: data_hash(options.data, split) for split in splits}
    folder = options.labels or options.out / "labels"
    if options.labels is None:
        if is_first():
            precompute(options.data, folder, config, splits=splits, strict=options.strict)
        barrier()
    try:
        store = LabelStore.open(folder)
        store.require(config, hashes)
    except LabelStoreError as error:
        raise LabelStoreError(
            f"{error} (`polarmask precompute --preset {config.name} --data {options.data} "
            f"--out {folder}`, with every --set of this run)"
        ) from error
    return store, hashes


def _run_steps(
    run: TrainingRun, data: _TrainingData, options: TrainOptions, progress: Progress
) -> None:
    """Take the remaining steps; save once per epoch; validate when due."""
    last_step = min(data.total_steps, options.stop_after or data.total_steps)
    save_every = max(1, len(data.images) // data.config.optim.batch_size)
    folder = options.out / "tensorboard"
    if run.step < last_step:
        data.images.copy_pixels()
    steps = load_steps(
        data.images,
        data.config,
        range(run.step, last_step),
        passes=options.passes,
        workers=options.loader_workers,
        pin_memory=options.device.type == "cuda",
    )
    with (
        open_tensorboard(folder, run.step, wanted=options.tensorboard) as board,
        stop_request() as stop,
    ):
        validator = _make_validator(data, options, board)
        if validator is not None:
            validator.drop_after(run.validated.step)
            _validate(run, data, validator, stop)
        for batches in progress.watch(steps):
            values = run.advance(batches)
            progress.record(values)
            if board is not None:
                board.scalars("train", values, run.step)
                if (run.step - 1) % save_every == 0:
                    board.batch(batches[0], data.config.model.strides, run.step)
            stopping = stop.is_requested(options.device)
            is_due = run.step % save_every == 0 or run.step == last_step or stopping
            if is_due:
                run.save()
            if stopping and run.step < data.total_steps:
                raise stop.stopped(f"step {run.step} of {data.total_steps} is saved")
            if validator is not None:
                is_due = _validate(run, data, validator, stop) or is_due
            if is_due:
                _tell(options)


def _make_validator(
    data: _TrainingData, options: TrainOptions, board: TensorBoard | None
) -> Validator | None:
    if data.validation is None:
        return None
    return Validator(
        data.validation,
        options.out,
        data.card(options),
        every=max(1, round(data.config.validate_epochs * data.steps_per_epoch)),
        device=options.device,
        board=board,
    )


def _validate(
    run: TrainingRun, data: _TrainingData, validator: Validator, stop: StopRequest
) -> bool:
    """Validate and return True if due; a run that is stopped meanwhile does so when it resumes."""
    if not validator.is_due(run.step, data.total_steps, run.validated):
        return False
    with stop.at_once(f"step {run.step} of {data.total_steps} is saved"):
        run.validated = validator.evaluate(run.detector(), run.step, run.validated)
    run.save()
    return True


def _write_model(
    folder: Path, run: TrainingRun, data: _TrainingData, options: TrainOptions, progress: Progress
) -> None:
    """Write the finished model on the first process; all call this together."""
    detector, card = run.detector(), data.card(options)
    if data.validation is None:
        with stop_request() as stop, stop.at_once(f"step {run.step}, the last one, is saved"):
            score = find_operating_score(detector, card, options.data, options.device)
        card = replace(card, operating_score=score)
    if not is_first():
        return
    training = {
        "steps": run.step,
        "epochs": run.step * data.config.optim.batch_size / len(data.images),
        "images": len(data.coco.images),
        "left_out_images": data.coco.summary.left_out_images,
        "left_out_objects": data.coco.summary.left_out_objects,
        "processes": world_size(),
        "seconds": progress.seconds(),
    }
    if progress.last_loss is not None:
        training["loss"] = progress.last_loss
    if data.validation is not None:
        detector, best = load_model(options.out / BEST)
        card = replace(best, training=card.training | best.training)
        logger.info("the model shows scores from %.3f, of the best F1 on val", card.min_score)
    save_model(folder, detector, replace(card, training=card.training | training))
