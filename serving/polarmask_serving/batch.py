"""Many images, one call: each image gets its own instances or its own error."""

import logging
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from polarmask.inference import Instances, Predictor
from polarmask_serving.errors import AnswerError, PredictionError

_log = logging.getLogger(__name__)


def predict_each(
    predictor: Predictor, images: Sequence[NDArray[np.uint8] | AnswerError]
) -> list[Instances | AnswerError]:
    """Replace each image by its instances; an error stays where it is.

    Images of equal size go through the network together. Others don't: the smaller one would be
    padded, and a padded image's answer differs a little from the one it gets alone.
    """
    outcomes: dict[int, Instances | AnswerError] = {}
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        if isinstance(image, AnswerError):
            outcomes[index] = image
        else:
            alike[image.shape].append(index)
    for indices in alike.values():
        group = [image for i in indices if not isinstance(image := images[i], AnswerError)]
        outcomes.update(zip(indices, _predict_alike(predictor, group), strict=True))
    return [outcomes[index] for index in range(len(images))]


def _predict_alike(
    predictor: Predictor, images: list[NDArray[np.uint8]]
) -> list[Instances | AnswerError]:
    try:
        return list(predictor.predict(images))
    except Exception as error:
        _log.exception("the model failed on %d images", len(images))
        if len(images) == 1:
            return [PredictionError(f"the model failed: {type(error).__name__}")]
    # Find out whose fault it is, so that the others get their answers.
    return [outcome for image in images for outcome in _predict_alike(predictor, [image])]
