"""Figures about each request: metrics for Prometheus, and one line of JSON for the log."""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ts.metrics.metric_type_enum import MetricTypes

from polarmask.inference.instances import Instances
from polarmask_serving.answer.batch import STAGES, Answer
from polarmask_serving.errors import AnswerError

_INSTANCE_BOUNDS = (0, 1, 2, 5, 10, 20, 50, 100, 200)
_SCORE_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_MOST_FOUND = 200
"""Instances in one line of the log; a kubelet cuts lines at 16 KiB."""

_COUNTER = MetricTypes.COUNTER

Add = Callable[[str, str, list[str], MetricTypes], Any]
"""TorchServe's `add_metric_to_cache`: name, unit, dimensions, type."""


class Metrics:
    """One worker's part of what the metrics port shows; `metrics.yaml` declares the names."""

    def __init__(self, add: Add, model: str) -> None:
        self._model = model
        common = ["ModelName", "Level"]
        self._seconds = add(
            "polarmask_stage_seconds", "s", ["stage", *common], MetricTypes.HISTOGRAM
        )
        self._refused = add("polarmask_refused_total", "count", ["code", *common], _COUNTER)
        self._instances = _Histogram(add, "polarmask_instances", _INSTANCE_BOUNDS, model)
        self._scores = _Histogram(add, "polarmask_score", _SCORE_BOUNDS, model)

    def add(self, answer: Answer) -> None:
        """Add one answer. Instances and scores are counted before the request's own options."""
        for stage in STAGES:
            self._seconds.add_or_update(answer.seconds[stage], [stage, self._model, "Model"])
        for outcome in answer.outcomes:
            if isinstance(outcome, AnswerError):
                self._refused.add_or_update(1, [outcome.code, self._model, "Model"])
        found = [outcome for outcome in answer.outcomes if isinstance(outcome, Instances)]
        self._instances.observe([len(each) for each in found])
        self._scores.observe([score for each in found for score in each.scores.tolist()])


class _Histogram:
    """A Prometheus histogram made of counters: TorchServe's own has fixed bounds for seconds."""

    def __init__(self, add: Add, name: str, bounds: Sequence[float], model: str) -> None:
        common = ["ModelName", "Level"]
        self._bounds = bounds
        self._bucket = add(f"{name}_bucket", "count", ["le", *common], _COUNTER)
        self._sum = add(f"{name}_sum", "count", common, _COUNTER)
        self._count = add(f"{name}_count", "count", common, _COUNTER)
        self._common = [model, "Model"]
        self._write(np.zeros(len(bounds) + 1, np.intp), 0.0, empty_too=True)

    def observe(self, values: Iterable[float]) -> None:
        """Count values into all buckets whose bound they don't exceed."""
        values = list(values)
        upto_L = np.zeros(len(self._bounds) + 1, np.intp)
        for value in values:
            upto_L[bisect_left(self._bounds, value) :] += 1
        self._write(upto_L, float(sum(values)))

    def _write(
        self, upto_L: np.ndarray[Any, np.dtype[np.intp]], total: float, *, empty_too: bool = False
    ) -> None:
        """Each update is a line that TorchServe parses, so what adds nothing is left out."""
        labels = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for label, count in zip(labels, upto_L.tolist(), strict=True):
            if count or empty_too:
                self._bucket.add_or_update(count, [label, *self._common])
        if total or empty_too:
            self._sum.add_or_update(total, self._common)
        if upto_L[-1] or empty_too:
            self._count.add_or_update(int(upto_L[-1]), self._common)


def log_line(
    answer: Answer, *, request_id: str, num_bytes: int, version: str, with_found: bool = False
) -> str:
    """Return one request as a line of JSON; log4j2.xml knows it by how it begins.

    Args:
        answer: What was answered.
        request_id: Of the request.
        num_bytes: That came.
        version: Of the model.
        with_found: Add what was found before the request's own options, for a comparison with
            another model: category, score and box of the best instances.
    """
    images = [_image_entry(outcome) for outcome in answer.outcomes]
    entry = {
        "request_id": request_id,
        "status": 200 if answer.error is None else answer.error.status,
        "code": None if answer.error is None else answer.error.code,
        "reason": None if answer.error is None else str(answer.error),
        "version": version,
        "bytes": num_bytes,
        "images": images,
        "seconds": {stage: round(seconds, 5) for stage, seconds in answer.seconds.items()},
    }
    if with_found:
        room = _MOST_FOUND // max(1, len(answer.outcomes))
        entry["found"] = [_found(outcome, room) for outcome in answer.outcomes]
    return json.dumps(entry, separators=(",", ":"))


def _image_entry(outcome: Instances | AnswerError) -> dict[str, Any]:
    if isinstance(outcome, AnswerError):
        return {"code": outcome.code}
    height, width = outcome.image_hw
    return {"height": height, "width": width, "instances": len(outcome)}


def _found(outcome: Instances | AnswerError, room: int) -> list[list[float]]:
    """Return category id, score, left, top, width, height of the best instances."""
    if isinstance(outcome, AnswerError):
        return []
    rows = zip(outcome.category_ids, outcome.scores, outcome.boxes_xywh, strict=True)
    return [
        [int(category), round(float(score), 3), *(round(float(each), 1) for each in box)]
        for category, score, box in list(rows)[:room]
    ]
