"""Many requests, one call of the model: each request gets its own answer or its own error."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from polarmask.inference.instances import Instances
from polarmask.inference.predictor import Predictor, Prepared
from polarmask.inference.stage_clock import StageClock
from polarmask_serving.answer import wire
from polarmask_serving.answer.image_bytes import decode_image
from polarmask_serving.answer.image_file import Budget
from polarmask_serving.errors import (
    AnswerError,
    AnswerTooLargeError,
    PredictionError,
    RequestError,
    TimeOutError,
)

_log = logging.getLogger(__name__)

MAX_INSTANCES_IN_TILES = 10_000
"""Of one image, before those that a seam cuts are joined: bounds the memory and work of joining. If
all of them overlap, the time limit of the batch ends it."""
_MODEL_SECONDS = 45
"""For the images of a batch, before the last tiles: a worker is killed after 60 s in all."""

STAGES = ("decode_image", "network", "decode_rays", "encode_answer")


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request as it came."""

    fields: Mapping[str, object]
    """TorchServe's; the body is `body`."""
    headers: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What goes back, and the figures about it."""

    error: AnswerError | None
    """Gives the HTTP status; None: 200."""
    body: bytes
    outcomes: tuple[Instances | AnswerError, ...]
    """By image; instances before the request's options."""
    seconds: Mapping[str, float]
    """By stage of `STAGES`; the network looks at all images of a batch together."""


@dataclass
class _Open:
    """A request on its way."""

    parsed: wire.ParsedRequest
    images: list[Prepared | AnswerError]
    clock: StageClock = field(default_factory=StageClock)


def answer_batch(
    predictor: Predictor, batch: Sequence[Request], model: Mapping[str, str]
) -> list[Answer]:
    """Answer requests; whatever is wrong with one image stays with that image.

    Args:
        predictor: The model.
        batch: Requests that came at about the same time.
        model: `name` and `version` for the answers.
    """
    categories = {category.id: category.name for category in predictor.card.categories}
    opened = [_open(predictor, request, categories) for request in batch]
    clock = StageClock(_MODEL_SECONDS)
    outcomes = iter(predict_each(predictor, [i for each in opened for i in each.images], clock))
    return [
        _close(predictor, each, tuple(next(outcomes) for _ in each.images), model, clock)
        for each in opened
    ]


def _open(predictor: Predictor, request: Request, categories: Mapping[int, str]) -> _Open:
    clock = StageClock()
    with clock("decode_image"):
        try:
            parsed = wire.read_request(request.fields, request.headers, categories)
            in_tiles = parsed.options.tile == "auto"
            images = prepare_each(predictor, parsed.images, in_tiles=in_tiles)
            return _Open(parsed, images, clock)
        except RequestError as refusal:
            return _Open(wire.ParsedRequest(images=(None,)), [refusal], clock)
        except Exception as error:  # whatever it is, the others of the batch continue
            _log.exception("a request can't be read")
            fault = PredictionError(f"reading the request failed: {type(error).__name__}")
            return _Open(wire.ParsedRequest(images=(None,)), [fault], clock)


def _close(
    predictor: Predictor,
    each: _Open,
    outcomes: tuple[Instances | AnswerError, ...],
    model: Mapping[str, str],
    together: StageClock,
) -> Answer:
    with each.clock("encode_answer"):
        try:
            least = each.parsed.options.score_threshold
            shown = [
                one if isinstance(one, AnswerError) else predictor.shown(one, least)
                for one in outcomes
            ]
            default = predictor.card.min_score
            error, body = wire.write_answer(each.parsed, shown, model, default_score=default)
        except AnswerTooLargeError as refusal:
            error = refusal
            outcomes, body = (error,) * len(outcomes), wire.error_body(error)
        except ValueError:  # JSON has no NaN
            _log.exception("an answer can't be written")
            error = PredictionError("the model's answer holds what is no number")
            outcomes, body = (error,) * len(outcomes), wire.error_body(error)
    seconds = {stage: together.seconds[stage] + each.clock.seconds[stage] for stage in STAGES}
    return Answer(error=error, body=body, outcomes=outcomes, seconds=seconds)


def prepare_each(
    predictor: Predictor, encoded: Iterable[object], *, in_tiles: bool = True
) -> list[Prepared | AnswerError]:
    """Decode and resize each image alone, so that one large image at a time is in memory.

    Those that are going to be cut into tiles stay in it. The limits of `Budget` hold for all
    images together.
    """
    images: list[Prepared | AnswerError] = []
    budget = Budget(tiled_pixels=predictor.tiled_pixels) if in_tiles else Budget()
    for data in encoded:
        if isinstance(data, RequestError):
            images.append(data)
            continue
        try:
            image = decode_image(data, budget)
            images.append(predictor.prepare(image, in_tiles=in_tiles))
        except RequestError as error:
            images.append(error)
    return images


def predict_each(
    predictor: Predictor, images: Sequence[Prepared | AnswerError], clock: StageClock
) -> list[Instances | AnswerError]:
    """Replace each image by its instances; an error stays where it is."""
    ready = [image for image in images if not isinstance(image, AnswerError)]
    found = iter(_predict_all(predictor, ready, clock))
    return [image if isinstance(image, AnswerError) else next(found) for image in images]


def _predict_all(
    predictor: Predictor, images: list[Prepared], clock: StageClock
) -> list[Instances | AnswerError]:
    try:
        return list(predictor.predict_prepared(images, clock=clock))
    except TimeoutError as error:
        late = TimeOutError(f"the model took {error}; send the images one by one, or in parts")
        return [late] * len(images)
    except Exception as error:  # whatever it is, other images of the batch continue
        _log.exception("the model failed on %d images", len(images))
        if len(images) == 1:
            return [PredictionError(f"the model failed: {type(error).__name__}")]
    # Find out whose fault it is, so that the others get their answers.
    return [outcome for image in images for outcome in _predict_all(predictor, [image], clock)]
