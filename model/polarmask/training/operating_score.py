"""The score threshold that a finished model keeps: the one with the best F1 on the val split."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import torch

from polarmask.data.coco import CocoData, load_coco
from polarmask.engines.torch_engines import Eager
from polarmask.errors import DataError
from polarmask.evaluation.evaluate import Evaluation, evaluate_together, match_model
from polarmask.evaluation.recommend import spread
from polarmask.inference.model_folder import DEFAULT_SCORE, ModelCard
from polarmask.inference.predictor import Predictor
from polarmask.labels.precompute import find_splits
from polarmask.network.detector import PolarMask
from polarmask.system.distributed import all_gather

logger = logging.getLogger(__name__)

_IMAGES = 200
"""Of the val split, evenly spread: more change the threshold little, and take time."""
_PIXELS = 50_000_000
"""Of them together, about: one large slide may be more."""
_STEPS = 1000
"""Thresholds are rounded down to multiples of one by this."""


def operating_score_of(evaluation: Evaluation) -> float | None:
    """Return the threshold to keep in the model; None without a true detection."""
    if not evaluation.best_f1:
        return None
    return math.floor(evaluation.operating_score * _STEPS) / _STEPS


def find_operating_score(
    detector: PolarMask, card: ModelCard, data: Path, device: torch.device
) -> float | None:
    """Evaluate a finished model on images of the val split, and log what was found.

    All processes call this together; each predicts every n-th image.

    Returns:
        The threshold, on the first process; None if there is none to keep.
    """
    predictor = Predictor(Eager(detector.eval()), card, device)
    try:
        part = _sample(data, predictor)
    except DataError as error:
        logger.warning("no score threshold could be chosen on the val split: %s", error)
        part = None
    # Each machine reads its own copy of the data. All evaluate or none: else some wait for ever.
    everywhere = all(all_gather(part is not None))
    if part is None or not everywhere:
        return None
    judged = evaluate_together(predictor, part, skip_unreadable=True)
    if judged is None:
        return None
    evaluation, _ = judged
    score = operating_score_of(evaluation)
    if score is None:
        logger.warning(
            "no object was found in %d val images; the model shows scores from %.2f",
            evaluation.num_images,
            DEFAULT_SCORE,
        )
    else:
        logger.info(
            "the model shows scores from %.3f: best F1, %.3f, on %d val images",
            score,
            evaluation.best_f1,
            evaluation.num_images,
        )
    return score


def _sample(data: Path, predictor: Predictor) -> CocoData | None:
    """Return some images of the val split; None without such a split."""
    if "val" not in find_splits(data):
        return None
    split = match_model(predictor, load_coco(data, "val", config=predictor.card.config.input))
    some = spread(split.images, _IMAGES)
    pixels = sum(image.width * image.height for image in some)
    number = max(1, min(len(some), _PIXELS * len(some) // pixels))
    return replace(split, images=tuple(spread(some, number)))
