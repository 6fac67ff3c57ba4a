"""TorchServe adapter: hands each row to `wire`, all images to the model, each answer to its row.

TorchServe imports this file by its stem and refuses it if it defines more than one class.
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # imported from an archive: its code goes before whatever is installed here
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
from ts.metrics.metric_type_enum import MetricTypes

from polarmask.inference import Instances, Predictor
from polarmask_serving import wire
from polarmask_serving.archive import check_unpacked
from polarmask_serving.batch import predict_each
from polarmask_serving.errors import RequestError

_log = logging.getLogger(__name__)


class PolarMaskHandler:
    """One worker's model."""

    def initialize(self, context: Any) -> None:
        """Load the archive's model and send a picture through, so that READY means it answers."""
        properties, described = context.system_properties, context.manifest["model"]
        check_unpacked(Path(properties["model_dir"]))
        self.model = {"name": described["modelName"], "version": described["modelVersion"]}
        gpu = properties.get("gpu_id")
        cv2.setNumThreads(1)
        # Two OpenMP threads beside a busy neighbour are ten times slower than one.
        self.predictor = Predictor.load(
            Path(properties["model_dir"]) / "model",
            device="cpu" if gpu is None else f"cuda:{gpu}",
            threads=1,
        )
        add, common = context.metrics.add_metric_to_cache, ["ModelName", "Level"]
        histogram, counter = MetricTypes.HISTOGRAM, MetricTypes.COUNTER
        self.seconds = add("polarmask_stage_seconds", "s", ["stage", *common], histogram)
        self.instances = add("polarmask_instances", "count", common, counter)
        self.refused = add("polarmask_refused_requests", "count", ["code", *common], counter)
        blank = np.zeros((256, 256, 3), np.uint8)
        request = wire.Request(images=(blank,))
        wire.write_answer(request, self.predictor.predict([blank]), self.model)
        _log.info("model %(name)s version %(version)s answers", self.model)

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; whatever is wrong with one image stays with that image."""
        started = time.perf_counter()
        requests = []
        for index, row in enumerate(rows):
            try:
                requests.append(wire.read_request(row, context.get_all_request_header(index)))
            except RequestError as refusal:
                requests.append(wire.Request(images=(refusal,)))
        decoded = time.perf_counter()
        images = [image for request in requests for image in request.images]
        outcomes = iter(predict_each(self.predictor, images))
        predicted = time.perf_counter()
        bodies = []
        for index, request in enumerate(requests):
            mine = [next(outcomes) for _ in request.images]
            error, body = wire.write_answer(request, mine, self.model)
            context.set_response_content_type(index, "application/json")
            if error is not None:
                context.set_response_status(code=error.status, phrase=error.phrase, idx=index)
                self.refused.add_or_update(1, [error.code, self.model["name"], "Model"])
            found = sum(len(each.scores) for each in mine if isinstance(each, Instances))
            self.instances.add_or_update(found, [self.model["name"], "Model"])
            bodies.append(body)
        stages = ("decode", decoded - started), ("predict", predicted - decoded)
        for stage, seconds in (*stages, ("encode", time.perf_counter() - predicted)):
            self.seconds.add_or_update(seconds, [stage, self.model["name"], "Model"])
        return bodies
