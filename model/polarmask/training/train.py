"""The training loop. One process or many, CPU or CUDA; a stopped run goes on where it stopped."""

import json
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from polarmask.config.settings import RunConfig, to_dict
from polarmask.data.coco import CocoData, load_coco
from polarmask.errors import ConfigError, LabelStoreError
from polarmask.inference.model_folder import ModelCard, is_model_folder, load_model, save_model
from polarmask.labels.precompute import data_hash, precompute
from polarmask.labels.store import LabelStore
from polarmask.system.device import deterministic
from polarmask.system.distributed import barrier, is_first, rank, world_size
from polarmask.system.files import write_text
from polarmask.system.signals import StopRequest, ignore_signals, stop_request
from polarmask.training.dataset import Sample, StepSampler, TrainingImages, collate
from polarmask.training.progress import Meter
from polarmask.training.run_folder import BEST, CHECKPOINT, METRICS
from polarmask.training.tensorboard import Board, open_board
from polarmask.training.training_run import TrainingRun
from polarmask.training.validation import Validator


@dataclass(frozen=True)
class TrainOptions:
    """Where and how to run; nothing here changes what is learned, but for rounding."""

    data: Path
    out: Path
    labels: Path | None = None
    """Label store; None makes one in the run folder."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loader_workers: int = 0
    """Loader processes per training process; 0 loads in the training process."""
    passes: int = 1
    """Batches that a process takes its share of a step in, to save memory: gradients add up."""
    compiled: bool = False
    """Let torch.compile translate the network: minutes at the start, faster steps."""
    deterministic: bool = False
    """Same bits on every run on the same machine; slower on CUDA, where it is not so by itself."""
    tensorboard: bool = False
    """Write curves and pictures to `tensorboard/` in the run folder."""
    provenance: dict[str, str] | None = None
    stop_after: int | None = None
    """Stop at this step, as an interruption would; the next call resumes."""


def train(config: RunConfig, options: TrainOptions) -> Path:
    """Train, or go on training, and return the model folder.

    Writes `config.json`, `checkpoint.pt` and `metrics.jsonl` to the run folder and at the end
    `model/`: the last weights (averaged where the run averages) or, of a run that validates, the
    best ones measured.

    Raises:
        DataError, LabelStoreError: Data or labels can't be used.
        CheckpointError: The run folder belongs to a run with another config or other data.
        TrainingError: The loss stopped being a number.
        TrainingStopped: SIGTERM or SIGHUP came; the checkpoint holds the last step.
    """
    _require_even_shares(config, options)
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
        run.begin(compiled=options.compiled)
        if is_first():
            write_text(options.out / "config.json", json.dumps(to_dict(data.config), indent=1))
        first_step = run.step
        meter = Meter(options.out / METRICS, run.step, data.total_steps, config.optim.batch_size)
        _run_steps(run, data, options, meter)
        folder = options.out / "model"
        is_due = run.step > first_step or not is_model_folder(folder)
        if run.step == data.total_steps and is_due and is_first():
            _write_model(folder, run, data, options, meter)
        barrier()
        return folder


def _require_even_shares(config: RunConfig, options: TrainOptions) -> None:
    shares = world_size() * options.passes
    if config.optim.batch_size % shares:
        times = f" times {options.passes} batches" if options.passes > 1 else ""
        raise ConfigError(
            f"batch_size {config.optim.batch_size} does not divide among {world_size()} "
            f"processes{times}; change optim.batch_size or the number of processes"
        )
    if options.passes > 1 and config.model.backbone_norm == "batch":
        raise ConfigError(
            "batch norm sees one batch at a time, so that several do not add up to a large one; "
            "take --passes 1, or --set model.backbone_norm=group"
        )


@dataclass(frozen=True)
class _TrainingData:
    """What a run learns from and is measured on."""

    config: RunConfig
    """With the number of classes that follows from the data."""
    coco: CocoData
    images: TrainingImages
    validation: CocoData | None
    """The usable images of the val split, if the run validates."""
    data_hash: str

    @classmethod
    def open(cls, config: RunConfig, options: TrainOptions) -> "_TrainingData":
        """Load annotations and labels."""
        splits = ("train", "val") if config.validate_epochs else ("train",)
        coco = {split: load_coco(options.data, split) for split in splits}
        store, hashes = _open_labels(config, options, splits)
        categories = len(coco["train"].categories)
        config = replace(config, model=replace(config.model, num_classes=categories))
        validation = coco.get("val")
        if validation is not None:
            # Making the labels has decoded every image; those left out then would fail here.
            validation = validation.only(set(store.image_ids("val")))
        return cls(
            config,
            coco["train"],
            TrainingImages(coco["train"], store, config),
            validation,
            hashes["train"],
        )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        optim = self.config.optim
        return max(1, math.ceil(optim.epochs * len(self.images) / optim.batch_size))

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps that see as many images as there are."""
        return len(self.images) / self.config.optim.batch_size


def _open_labels(
    config: RunConfig, options: TrainOptions, splits: tuple[str, ...]
) -> tuple[LabelStore, dict[str, str]]:
    """Make or open the label store; return it with the hashes of the annotations."""
    hashes = {split: data_hash(options.data, split) for split in splits}
    folder = options.labels or options.out / "labels"
    if options.labels is None:
        if is_first():
            precompute(options.data, folder, config, splits=splits)
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


def _run_steps(run: TrainingRun, data: _TrainingData, options: TrainOptions, meter: Meter) -> None:
    """Take the steps that are left, save now and then, and measure when it is time."""
    last_step = min(data.total_steps, options.stop_after or data.total_steps)
    save_every = max(1, len(data.images) // data.config.optim.batch_size)
    folder = options.out / "tensorboard"
    loader = _loader(data, options, range(run.step, last_step))
    with open_board(folder, run.step, wanted=options.tensorboard) as board, stop_request() as stop:
        validator = _make_validator(data, options, board)
        if validator is not None:
            validator.forget_after(run.validated.step)
            _validate(run, data, validator, stop)
        for batches in meter.watch(loader, options.passes):
            values = run.advance(batches)
            meter.record(values)
            if board is not None:
                board.scalars("train", values, run.step)
                if (run.step - 1) % save_every == 0:
                    board.batch(batches[0], data.config.model.strides, run.step)
            is_asked = stop.is_asked(options.device)
            if run.step % save_every == 0 or run.step == last_step or is_asked:
                run.save()
            if is_asked and run.step < data.total_steps:
                raise stop.stopped(f"step {run.step} of {data.total_steps} is saved")
            if validator is not None:
                _validate(run, data, validator, stop)


def _loader(data: _TrainingData, options: TrainOptions, steps: range) -> DataLoader[Sample]:
    sampler = StepSampler(
        len(data.images),
        data.config.optim.batch_size,
        data.images.canvas_hw,
        seed=data.config.seed,
        steps=steps,
        rank=rank(),
        world_size=world_size(),
        passes=options.passes,
    )
    return DataLoader(
        data.images,
        batch_sampler=sampler,
        collate_fn=partial(collate, config=data.config),
        num_workers=options.loader_workers,
        pin_memory=options.device.type == "cuda",
        worker_init_fn=ignore_signals,
    )


def _make_validator(
    data: _TrainingData, options: TrainOptions, board: Board | None
) -> Validator | None:
    if data.validation is None:
        return None
    return Validator(
        data.validation,
        options.out,
        ModelCard(data.config, data.coco.categories, options.provenance or {}),
        every=max(1, round(data.config.validate_epochs * data.steps_per_epoch)),
        device=options.device,
        board=board,
    )


def _validate(
    run: TrainingRun, data: _TrainingData, validator: Validator, stop: StopRequest
) -> None:
    """Measure if it is time; a run that is stopped meanwhile measures anew when it goes on."""
    if not validator.is_due(run.step, data.total_steps, run.validated):
        return
    with stop.at_once(f"step {run.step} of {data.total_steps} is saved"):
        run.validated = validator.measure(run.detector(), run.step, run.validated)
    run.save()


def _write_model(
    folder: Path, run: TrainingRun, data: _TrainingData, options: TrainOptions, meter: Meter
) -> None:
    training = {
        "steps": run.step,
        "epochs": run.step * data.config.optim.batch_size / len(data.images),
        "images": len(data.images),
        "processes": world_size(),
        "seconds": meter.seconds(),
    }
    if meter.last_loss is not None:
        training["loss"] = meter.last_loss
    detector = run.detector()
    if data.validation is not None:
        detector, card = load_model(options.out / BEST)
        training |= card.training
    save_model(
        folder,
        detector,
        ModelCard(data.config, data.coco.categories, options.provenance or {}, training),
    )
