"""TorchServe adapter: rows in, answers out, each with its metrics and a line of the log.

TorchServe imports this file by its stem and refuses it if it defines more than one class.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # imported from an archive: its code goes before whatever is installed here
    sys.path.insert(0, str(Path(__file__).resolve().parent))
# Both are read when cv2 is imported. It would write a line about each damaged image.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "25000000")

import cv2
import numpy as np

from polarmask.inference.predictor import Predictor
from polarmask_serving.answer.batch import MAX_INSTANCES_IN_TILES, Request, answer_batch
from polarmask_serving.answer.options import TRIAL_HEADER
from polarmask_serving.answer.request_log import Metrics, log_line
from polarmask_serving.archive.read import check_unpacked

_log = logging.getLogger(__name__)


class PolarMaskHandler:
    """One worker's model."""

    def initialize(self, context: Any) -> None:
        """Load the archive's model and send an image through, so that READY means it answers."""
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
            most_in_tiles=MAX_INSTANCES_IN_TILES,
        )
        self.metrics = Metrics(context.metrics.add_metric_to_cache, self.model["name"])
        blank = cv2.imencode(".png", np.zeros((256, 256, 3), np.uint8))[1].tobytes()
        (answer,) = answer_batch(
            self.predictor, [Request(fields={"body": blank}, headers={})], self.model
        )
        if answer.error is not None:
            raise answer.error
        about = self.model | {"engine": self.predictor.engine.name}
        _log.info("model %(name)s version %(version)s answers with engine %(engine)s", about)

    def handle(self, rows: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch; whatever is wrong with one request stays with that request."""
        batch = [
            Request(fields=row, headers=context.get_all_request_header(index))
            for index, row in enumerate(rows)
        ]
        answers = answer_batch(self.predictor, batch, self.model)
        for index, (request, answer) in enumerate(zip(batch, answers, strict=True)):
            headers = {name.lower(): value for name, value in request.headers.items()}
            request_id = _request_id(headers, context.get_request_id(index))
            context.set_response_content_type(index, "application/json")
            if answer.error is not None:
                error = answer.error
                context.set_response_status(code=error.status, phrase=error.phrase, idx=index)
            self.metrics.add(answer)
            size = sum(len(v) for v in request.fields.values() if isinstance(v, bytes | bytearray))
            line = log_line(
                answer,
                request_id=request_id,
                num_bytes=size,
                version=self.model["version"],
                with_found=TRIAL_HEADER in headers,
            )
            _log.info("%s", line)
        return [answer.body for answer in answers]


def _request_id(headers: Mapping[str, object], own: str) -> str:
    """Return the id the client or proxy gave, if it is one, else TorchServe's.

    TorchServe writes its own into the answer, whatever the handler sets; the proxy corrects that.
    """
    given = headers.get("x-request-id")
    return given if isinstance(given, str) and re.fullmatch(r"[!-~]{1,128}", given) else own
