"""Validation: mask AP at intervals during training, and the best weights so far."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from polarmask.data.coco import CocoData
from polarmask.engines.torch_engines import Eager
from polarmask.evaluation.evaluate import Evaluation, evaluate_together
from polarmask.inference.instances import Instances
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask
from polarmask.system.distributed import all_gather, is_first
from polarmask.training.checkpoint import Validated
from polarmask.training.operating_score import operating_score_of
from polarmask.training.progress import append_line, drop_lines_after
from polarmask.training.run_folder import BEST, VALIDATION
from polarmask.training.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class Validator:
    """Evaluates weights on the val split; the images are divided among the processes.

    Writes `validation.jsonl`, and the best weights so far to the model folder `best/`.
    """

    def __init__(
        self,
        data: CocoData,
        out: Path,
        card: ModelCard,
        *,
        every: int,
        device: torch.device,
        board: TensorBoard | None,
    ) -> None:
        self._data = data
        self._card = card
        self._every = every
        self._device = device
        self._board = board
        self._lines = out / VALIDATION
        self.best_folder = out / BEST

    def drop_after(self, step: int) -> None:
        """Drop results after a step, which is where the run resumes."""
        if is_first():
            drop_lines_after(self._lines, step)

    def is_due(self, step: int, total_steps: int, validated: Validated) -> bool:
        """Return whether to evaluate: once at every interval and at the end."""
        at_interval = step % self._every == 0 or step == total_steps
        return step > 0 and at_interval and validated.step != step

    def evaluate(self, detector: PolarMask, step: int, before: Validated) -> Validated:
        """Evaluate the weights of a step; of equal ones the later are kept: they have seen more."""
        predictor = Predictor(Eager(detector.eval()), self._card, self._device)
        judged = evaluate_together(predictor, self._data)
        mask_ap = all_gather(judged[0].mask_ap if judged else 0.0)[0]
        is_best = mask_ap >= before.best_ap
        if judged is not None:
            self._record(*judged, step)
            if is_best:
                training = {"kept_step": float(step), "val_mask_ap": mask_ap}
                card = replace(
                    self._card,
                    training=self._card.training | training,
                    operating_score=operating_score_of(judged[0]),
                )
                save_model(self.best_folder, detector, card)
        best = (step, mask_ap) if is_best else (before.best_step, before.best_ap)
        return Validated(step, *best)

    def _record(self, evaluation: Evaluation, found: Mapping[int, Instances], step: int) -> None:
        values = {
            "mask_ap": evaluation.mask_ap,
            "mask_ap50": evaluation.mask_ap50,
            "mask_ap75": evaluation.mask_ap75,
        }
        append_line(self._lines, {"step": step, **values})
        logger.info(
            "validation step=%d %s",
            step,
            " ".join(f"{name}={value:.4f}" for name, value in values.items()),
        )
        if self._board is not None:
            self._board.scalars("val", values, step)
            self._board.validation(self._data, found, evaluation.operating_score, step)
