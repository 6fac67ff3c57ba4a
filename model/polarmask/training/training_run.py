"""Detector, optimiser and step: everything that a training step changes and a checkpoint holds."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polarmask.config.overrides import settings_of
from polarmask.config.settings import RunConfig
from polarmask.data.coco import Category
from polarmask.data.preprocess import normalise
from polarmask.errors import CheckpointError, TrainingError
from polarmask.network import losses
from polarmask.network.backbone_weights import load_backbone_weights
from polarmask.network.detector import PolarMask
from polarmask.network.losses import loss_divisors, loss_sums, normalise_losses, positive_quality
from polarmask.system.device import half_precision, keep_depthwise_in_float32
from polarmask.system.distributed import all_gather, all_sum, is_first, world_size
from polarmask.training.checkpoint import TrainingState, Validated, save_checkpoint
from polarmask.training.dataset import Batch
from polarmask.training.initial import InitialWeights, start_from
from polarmask.training.optim import learning_rate, make_average, make_optimizer, set_learning_rate
from polarmask.training.resume import newest_state

logger = logging.getLogger(__name__)

_LAST_FROM = 16
"""Channels that group norm takes at a time, from which on channels-last is faster on a CPU."""


@dataclass(frozen=True, eq=False)
class _BatchLosses:
    """K named losses of one batch."""

    names: tuple[str, ...]
    loss_K: Tensor
    """Normalised: summed over batches and processes, they are the losses of the step."""
    sum_K: Tensor
    """Before normalisation: these depend on the batch alone."""


class TrainingRun:
    """The training state of one process; all processes hold the same weights.

    Attributes:
        step: Optimiser steps done.
        validated: Results of validation so far.
    """

    def __init__(
        self,
        config: RunConfig,
        total_steps: int,
        *,
        categories: tuple[Category, ...],
        data_hash: str,
        checkpoint: Path,
        device: torch.device,
    ) -> None:
        self.step = 0
        self.validated = Validated()
        self._config = config
        self._total_steps = total_steps
        self._categories = categories
        self._data_hash = data_hash
        self._checkpoint = checkpoint
        self._device = device
        torch.manual_seed(config.seed)
        self._detector = PolarMask(config.model)
        # Channels-last is what tensor cores want, and convolutions of CPUs. There, the gradient of
        # group norm is slow in it, unless it takes many channels at a time.
        channels_last = device.type == "cuda" or config.model.norm_channels >= _LAST_FROM
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._detector.to(device).to(memory_format=self._layout)
        half = half_precision(config.optim.amp, device)
        if half is not None and device.type == "cpu":
            keep_depthwise_in_float32(self._detector)
        self._optimizer = make_optimizer(self._detector, config.optim)
        self._average = make_average(self._detector, config.optim.ema_decay)
        self._autocast = partial(torch.autocast, device.type, dtype=half, enabled=half is not None)
        self._scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
        self._replicas: DistributedDataParallel | None = None
        self._network: nn.Module = self._detector

    def begin(self, *, initial: InitialWeights | None = None, compiled: bool = False) -> None:
        """Resume from the newest checkpoint, if there is one; then join the other processes.

        Args:
            initial: Weights to start from if there is no checkpoint; None takes the backbone's.
            compiled: Compile the network with torch.compile.

        Raises:
            CheckpointError: A checkpoint is unreadable or belongs to another run.
            ConfigError: The initial weights are of another network.
        """
        state = newest_state(self._checkpoint.parent, self._require_own)
        if state is not None:
            self._resume(state)
        elif initial is not None:
            logger.info("%s", start_from(self._detector, initial, self._categories))
        elif self._config.backbone_weights is not None:
            load_backbone_weights(self._detector.pyramid, self._config.backbone_weights)
        if world_size() > 1:
            device_ids = [self._device] if self._device.type == "cuda" else None
            self._replicas = DistributedDataParallel(self._detector, device_ids=device_ids)
            self._network = self._replicas
        if compiled:
            self._network = cast(nn.Module, torch.compile(self._network))

    def _require_own(self, state: TrainingState) -> None:
        if state.config != self._config:
            difference = _first_difference(state.config, self._config)
            raise CheckpointError(
                f"{self._checkpoint} belongs to a run with another config ({difference}); "
                "choose another --out, with --init-from and this folder to train it for longer, "
                "or delete the folder to start again"
            )
        if state.data_hash != self._data_hash:
            raise CheckpointError(
                f"{self._checkpoint} belongs to a run on other training annotations (sha256 "
                f"{state.data_hash[:12]}, here {self._data_hash[:12]}); choose another --out, or "
                "delete the folder to start again"
            )

    def _resume(self, state: TrainingState) -> None:
        self.step = state.step
        self.validated = state.validated
        self._detector.load_state_dict(state.detector)
        self._optimizer.load_state_dict(state.optimizer)
        self._scaler.load_state_dict(state.scaler)
        if self._average is not None and state.average is not None:
            self._average.load_state_dict(state.average)
        logger.info("resume %s at step %d", self._checkpoint, self.step)

    def save(self) -> None:
        """Write the checkpoint, on the first process only."""
        if not is_first():
            return
        average = None if self._average is None else self._average.state_dict()
        state = TrainingState(
            config=self._config,
            categories=self._categories,
            data_hash=self._data_hash,
            step=self.step,
            detector=self._detector.state_dict(),
            average=average,
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            validated=self.validated,
        )
        save_checkpoint(self._checkpoint, state)

    def detector(self) -> PolarMask:
        """Return the weights to keep and to evaluate: the averaged ones if the run averages."""
        if self._average is None:
            return self._detector
        averaged = self._average.module
        assert isinstance(averaged, PolarMask)  # noqa: S101  # AveragedModel copies what it is given
        return averaged

    def advance(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Take one optimiser step and return the losses over all processes.

        Args:
            batches: This process's images of the step. The gradients of several batches add up to
                those of one large batch, because all are divided by the same sums.

        Raises:
            TrainingError: Loss or gradient is NaN or infinite.
        """
        lr = learning_rate(self._config.optim, self.step, self._total_steps)
        set_learning_rate(self._optimizer, lr)
        self._network.train()
        self._optimizer.zero_grad(set_to_none=True)
        divisors = self._step_divisors(batches) if len(batches) > 1 else None
        own = [self._backward(batch, divisors, last=batch is batches[-1]) for batch in batches]
        loss_K = all_sum(torch.stack([each.loss_K for each in own]).sum(dim=0))
        named = dict(zip(own[0].names, loss_K.tolist(), strict=True))
        if not bool(loss_K.isfinite().all()):
            raise self._not_finite(named, batches, [each.sum_K for each in own])
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._detector.parameters(), self._config.optim.grad_clip)
        # With fp16 an overflow is routine: the scaler skips the step and scales less.
        if not self._scaler.is_enabled() and not bool(norm.isfinite()):
            raise self._not_finite({"gradient": float(norm)}, batches, [norm] * len(batches))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._detector)
        self.step += 1
        return {"loss": sum(named.values()), **named, "lr": lr}

    def _backward(
        self, batch: Batch, divisors: dict[str, Tensor] | None, *, last: bool
    ) -> "_BatchLosses":
        """Add a batch's gradients; the last batch of a step exchanges them with other processes.

        Args:
            batch: Images and targets.
            divisors: What normalises the losses; None takes those of this batch alone.
            last: Whether it is the step's last batch.
        """
        with self._sync_gradients(last):
            with self._autocast():
                predictions = self._network(self._image(batch))
            sums = loss_sums(predictions, batch.targets.to(self._device), self._config.loss)
            parts = normalise_losses(sums, divisors or loss_divisors(sums, self._config.loss))
            # DDP averages gradients over processes; the losses are parts of one global sum.
            loss = losses.total(parts) * world_size()
            self._scaler.scale(loss).backward()
        names = tuple(parts)
        return _BatchLosses(
            names,
            torch.stack([parts[name].detach() for name in names]),
            torch.stack([sums[name].detach() for name in names]),
        )

    def _image(self, batch: Batch) -> Tensor:
        image_BHW3 = batch.image_BHW3.to(self._device, non_blocking=True)
        image_B3HW = normalise(image_BHW3, self._config.input)
        return image_B3HW.contiguous(memory_format=self._layout)

    def _sync_gradients(self, enabled: bool) -> AbstractContextManager[Any]:
        if enabled or self._replicas is None:
            return nullcontext()
        return cast(AbstractContextManager[Any], self._replicas.no_sync())

    @torch.no_grad()
    def _step_divisors(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return what normalises the losses of a whole step, before its first backward pass."""
        quality_P = torch.cat([self._quality(batch) for batch in batches])
        images = sum(len(batch.image_BHW3) for batch in batches)
        counts = {
            "positives": quality_P.new_tensor(float(len(quality_P))),
            "weight": quality_P.sum(),
            "images": quality_P.new_tensor(float(images)),
        }
        return loss_divisors(counts, self._config.loss)

    def _quality(self, batch: Batch) -> Tensor:
        """Return the quality target of each positive, (P,)."""
        config, predictions = self._config.loss, None
        if config.centerness == "polar_iou":
            with self._autocast():
                predictions = self._detector(self._image(batch))
        return positive_quality(predictions, batch.targets.to(self._device), config)

    def _not_finite(
        self, named: dict[str, float], batches: Sequence[Batch], sums_by_batch: Sequence[Tensor]
    ) -> TrainingError:
        """Name the batches whose own sums are not finite; all processes call this together."""
        own = [
            f"{image_id} ({name})"
            for batch, sums in zip(batches, sums_by_batch, strict=True)
            if not bool(sums.isfinite().all())
            for image_id, name in zip(batch.image_ids, batch.file_names, strict=True)
        ]
        images = ", ".join(image for images in all_gather(own) for image in images)
        values = ", ".join(f"{name} {value:.4g}" for name, value in named.items())
        return TrainingError(
            f"the loss at step {self.step} is not finite ({values}) in a batch of images {images}; "
            "look at them and their labels, or lower optim.lr"
        )


def _first_difference(old: RunConfig, new: RunConfig) -> str:
    """Return the first setting that differs, with both values."""
    before, after = settings_of(old), settings_of(new)
    for path, value in before.items():
        if value != after[path]:
            return f"{path} was {value}, is {after[path]}"
    return "no difference"
