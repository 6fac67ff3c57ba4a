"""The training loop. One process or many, CPU or CUDA; a stopped run goes on where it stopped."""

import json
import logging
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from polarmask import losses
from polarmask.backbone_weights import load_backbone_weights
from polarmask.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from polarmask.coco import CocoData, load_coco
from polarmask.config import RunConfig, to_dict
from polarmask.dataset import Batch, Sample, StepSampler, TrainingImages, collate
from polarmask.detector import PolarMask, loss_sums, normalise_losses
from polarmask.distributed import all_sum, barrier, is_first, rank, world_size
from polarmask.errors import CheckpointError, ConfigError, LabelStoreError, TrainingError
from polarmask.files import write_text
from polarmask.label_store import LabelStore
from polarmask.model_folder import ModelCard, is_model_folder, save_model
from polarmask.optim import learning_rate, make_average, make_optimizer, set_learning_rate
from polarmask.precompute import data_hash, precompute
from polarmask.preprocess import normalise
from polarmask.progress import Meter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOptions:
    """Where and how to run; nothing here changes what is learned."""

    data: Path
    out: Path
    labels: Path | None = None
    """Label store; None makes one in the run folder."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    loader_workers: int = 0
    """Loader processes per training process; 0 loads in the training process."""
    provenance: dict[str, str] | None = None
    stop_after: int | None = None
    """Stop at this step, as an interruption would; the next call resumes."""


def train(config: RunConfig, options: TrainOptions) -> Path:
    """Train, or go on training, and return the model folder.

    Writes `config.json`, `checkpoint.pt` and `metrics.jsonl` to the run folder and at the end
    `model/`, with averaged weights where the run averages.

    Raises:
        DataError, LabelStoreError: Data or labels can't be used.
        CheckpointError: The run folder belongs to a run with another config or other data.
        TrainingError: The loss stopped being a number.
    """
    if config.optim.batch_size % world_size():
        raise ConfigError(
            f"batch_size {config.optim.batch_size} does not divide among {world_size()} "
            "processes; change optim.batch_size or the number of processes"
        )
    annotations = data_hash(options.data, "train")
    coco, store, config = _open_data(config, options, annotations)
    images = TrainingImages(coco, store, config)
    total_steps = max(1, math.ceil(config.optim.epochs * len(images) / config.optim.batch_size))
    run = _Run.start(config, options, annotations, total_steps)
    first_step = run.step
    if is_first():
        write_text(options.out / "config.json", json.dumps(to_dict(config), indent=1))
    last_step = min(total_steps, options.stop_after or total_steps)
    loader = _loader(images, config, options, range(run.step, last_step))
    meter = Meter(options.out / "metrics.jsonl", run.step, total_steps, config.optim.batch_size)
    save_every = max(1, len(images) // config.optim.batch_size)
    for batch in meter.watch(loader):
        meter.record(run.advance(batch))
        if run.step % save_every == 0 or run.step == last_step:
            run.save(options.out / "checkpoint.pt")
    folder = options.out / "model"
    is_due = run.step > first_step or not is_model_folder(folder)
    if run.step == total_steps and is_due and is_first():
        training = {
            "steps": run.step,
            "epochs": run.step * config.optim.batch_size / len(images),
            "images": len(images),
            "processes": world_size(),
            "seconds": meter.seconds(),
        }
        if meter.last_loss is not None:
            training["loss"] = meter.last_loss
        card = ModelCard(config, coco.categories, options.provenance or {}, training)
        save_model(folder, run.final_detector(), card)
    barrier()
    return folder


def _open_data(
    config: RunConfig, options: TrainOptions, annotations: str
) -> tuple[CocoData, LabelStore, RunConfig]:
    """Load annotations and labels; the number of classes follows from the data."""
    coco = load_coco(options.data, "train")
    if options.labels is None:
        folder = options.out / "labels"
        if is_first():
            precompute(options.data, folder, config, splits=("train",))
        barrier()
    else:
        folder = options.labels
    try:
        store = LabelStore.open(folder)
        store.require(config, {"train": annotations})
    except LabelStoreError as error:
        raise LabelStoreError(
            f"{error} (`polarmask precompute --preset {config.name} --data {options.data} "
            f"--out {folder}`, with every --set of this run)"
        ) from error
    model = replace(config.model, num_classes=len(coco.categories))
    return coco, store, replace(config, model=model)


def _loader(
    images: TrainingImages, config: RunConfig, options: TrainOptions, steps: range
) -> DataLoader[Sample]:
    sampler = StepSampler(
        len(images),
        config.optim.batch_size,
        images.canvas_hw,
        seed=config.seed,
        steps=steps,
        rank=rank(),
        world_size=world_size(),
    )
    return DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=partial(collate, config=config),
        num_workers=options.loader_workers,
        pin_memory=options.device.type == "cuda",
    )


class _Run:
    """Detector, optimiser and step: what a checkpoint holds."""

    def __init__(
        self, config: RunConfig, options: TrainOptions, annotations: str, total_steps: int
    ) -> None:
        self.step = 0
        self._config = config
        self._annotations = annotations
        self._device = options.device
        self._total_steps = total_steps
        torch.manual_seed(config.seed)
        self._detector = PolarMask(config.model)
        # Channels-last is what tensor cores want; on CPU its weight gradients are slower.
        on_cuda = options.device.type == "cuda"
        self._layout = torch.channels_last if on_cuda else torch.contiguous_format
        self._detector.to(options.device).to(memory_format=self._layout)
        self._optimizer = make_optimizer(self._detector, config.optim)
        self._average = make_average(self._detector, config.optim.ema_decay)
        use_amp = config.optim.amp and options.device.type == "cuda"
        half = torch.bfloat16 if use_amp and torch.cuda.is_bf16_supported() else torch.float16
        self._autocast = partial(torch.autocast, options.device.type, dtype=half, enabled=use_amp)
        self._scaler = torch.amp.GradScaler(
            options.device.type, enabled=use_amp and half is torch.float16
        )
        self._network: nn.Module = self._detector

    @classmethod
    def start(
        cls, config: RunConfig, options: TrainOptions, annotations: str, total_steps: int
    ) -> "_Run":
        """Build a run and resume it if its folder holds a checkpoint."""
        run = cls(config, options, annotations, total_steps)
        path = options.out / "checkpoint.pt"
        if path.is_file():
            run._resume(path)
        elif config.backbone_weights is not None:
            load_backbone_weights(run._detector.pyramid, config.backbone_weights)
        if world_size() > 1:
            device_ids = [options.device] if options.device.type == "cuda" else None
            run._network = DistributedDataParallel(run._detector, device_ids=device_ids)
        return run

    def _resume(self, path: Path) -> None:
        state = load_checkpoint(path)
        if state.config != self._config:
            difference = _first_difference(state.config, self._config)
            raise CheckpointError(
                f"{path} belongs to a run with another config ({difference}); "
                "choose another --out, or delete the folder to start afresh"
            )
        if state.data_hash != self._annotations:
            raise CheckpointError(
                f"{path} belongs to a run on other training annotations (sha256 "
                f"{state.data_hash[:12]}, here {self._annotations[:12]}); choose another --out, or "
                "delete the folder to start afresh"
            )
        self.step = state.step
        self._detector.load_state_dict(state.detector)
        self._optimizer.load_state_dict(state.optimizer)
        self._scaler.load_state_dict(state.scaler)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        logger.info("resume %s at step %d", path, self.step)

    def advance(self, batch: Batch) -> dict[str, float]:
        """Take one optimiser step and return the losses over all processes."""
        lr = learning_rate(self._config.optim, self.step, self._total_steps)
        set_learning_rate(self._optimizer, lr)
        targets = batch.targets.to(self._device)
        image = normalise(batch.image_BHW3.to(self._device, non_blocking=True), self._config.input)
        image = image.contiguous(memory_format=self._layout)
        self._network.train()
        with self._autocast():
            predictions = self._network(image)
        sums = loss_sums(predictions, targets, self._config.loss)
        parts = normalise_losses(sums, self._config.loss)
        # DDP averages gradients over processes; the parts are shares of one global sum.
        loss = losses.total(parts) * world_size()
        reduced = all_sum(torch.stack([*parts.values()]))
        if not bool(reduced.isfinite().all()):
            raise TrainingError(
                f"the loss is {dict(zip(parts, reduced.tolist(), strict=True))} at step "
                f"{self.step}, images {batch.image_ids} on process {rank()}; "
                "lower optim.lr or look at these images"
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._detector.parameters(), self._config.optim.grad_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._detector)
        self.step += 1
        named = dict(zip(parts, reduced.tolist(), strict=True))
        return {"loss": sum(named.values()), **named, "lr": lr}

    def save(self, path: Path) -> None:
        """Write the checkpoint, on the first process only."""
        if not is_first():
            return
        average = None if self._average is None else self._average.state_dict()
        state = TrainingState(
            config=self._config,
            data_hash=self._annotations,
            step=self.step,
            detector=self._detector.state_dict(),
            average=average,
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
        )
        save_checkpoint(path, state)

    def final_detector(self) -> PolarMask:
        """Return the weights to keep: the averaged ones if the run averages."""
        if self._average is None:
            return self._detector
        averaged = self._average.module
        assert isinstance(averaged, PolarMask)  # noqa: S101  # AveragedModel copies what it is given
        return averaged


def _first_difference(old: RunConfig, new: RunConfig) -> str:
    """Name the first setting that differs, both values with it."""
    pairs: list[tuple[str, Any, Any]] = [("", to_dict(old), to_dict(new))]
    while pairs:
        path, before, after = pairs.pop(0)
        if isinstance(before, dict):
            pairs += [(f"{path}.{key}".strip("."), before[key], after[key]) for key in before]
        elif before != after:
            return f"{path} was {before}, is {after}"
    return "no difference"
