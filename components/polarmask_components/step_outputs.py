"""Metrics, overlays and sample images that steps leave as artifacts."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import CocoData
from polarmask.data.images import read_image
from polarmask.data.intensity import shown
from polarmask.data.summary import SplitSummary, summary_counts
from polarmask.evaluation.evaluate import Evaluation
from polarmask.inference.drawing import contact_sheet, draw_shapes
from polarmask.inference.instances import Instances
from polarmask.labels.store import LabelSummary
from polarmask.system.files import atomic_path, write_text

_OVERLAYS = 6
_SAMPLE_SIDE = 2000
"""Pixels; as raw bytes a square of it is within the 20 MB that a request may have."""


class MetricsArtifact(Protocol):
    """Kubeflow's `Metrics`."""

    path: str

    def log_metric(self, metric: str, value: float) -> None:
        """Keep a scalar."""


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Return scalars under stable names, without those that the data leaves undefined.

    Mask AP and related metrics are in [0, 1]; `mask_ap_small` and the like by COCO's object sizes,
    `best_f1` at the score threshold `operating_score`.
    """
    values = {
        "mask_ap": evaluation.mask_ap,
        "mask_ap50": evaluation.mask_ap50,
        "mask_ap75": evaluation.mask_ap75,
        "mask_ap_small": evaluation.mask_ap_small,
        "mask_ap_medium": evaluation.mask_ap_medium,
        "mask_ap_large": evaluation.mask_ap_large,
        "mask_ar": evaluation.mask_ar,
        "best_f1": evaluation.best_f1,
        "operating_score": evaluation.operating_score,
    }
    counts = {"images": evaluation.num_images, "instances": evaluation.num_instances}
    return {name: value for name, value in values.items() if not math.isnan(value)} | counts


def label_metrics(summaries: Mapping[str, LabelSummary]) -> dict[str, float]:
    """Return scalars per split under stable names; IoU is in [0, 1]."""
    metrics: dict[str, float] = {}
    for split, summary in summaries.items():
        metrics |= {
            f"{split}_images": summary.images,
            f"{split}_instances": summary.instances,
            f"{split}_positives": summary.positives,
            f"{split}_without_positive": summary.without_positive,
            f"{split}_upper_bound_iou": summary.mean_iou,
        }
        metrics |= {
            f"{split}_upper_bound_iou_{name.replace(' ', '_')}": iou
            for name, iou in summary.per_category_iou.items()
        }
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def log_metrics(
    artifact: MetricsArtifact, values: Mapping[str, float], *, data: Sequence[SplitSummary]
) -> None:
    """Log scalars for Kubeflow's pages and write them to the artifact's file as JSON.

    The file is needed: the local runner reuses a step only if the file of each artifact exists.

    Args:
        artifact: Gets the scalars.
        values: Under stable names.
        data: What they were computed on; numbers of used and left-out items are logged, too.
    """
    scalars = {**values, **summary_counts(data)}
    for name, value in scalars.items():
        artifact.log_metric(name, value)
    write_text(Path(artifact.path), json.dumps(scalars, indent=1) + "\n")


def overlay_sheet(
    data: CocoData, predictions: Mapping[int, Instances], *, min_score: float
) -> NDArray[np.uint8]:
    """Draw what was found on a few images, spread over the split; (H, W, 3) uint8 RGB."""
    step = max(1, len(data.images) // _OVERLAYS)
    records = data.images[::step][:_OVERLAYS]
    overlays = [
        draw_shapes(
            read_image(data.image_path(record)),
            predictions[record.id].shapes(min_score=min_score),
        )
        for record in records
    ]
    captions = [
        f"{int((predictions[record.id].scores >= min_score).sum())} found" for record in records
    ]
    return contact_sheet(overlays, captions=captions)


def sample_image(data: CocoData) -> NDArray[np.uint8]:
    """Return the first image, made smaller if a server would refuse it; (H, W, 3) uint8 RGB.

    Args:
        data: A split whose pixels were checked.
    """
    image = shown(read_image(data.image_path(data.images[0])))
    height, width = image.shape[:2]
    scale = _SAMPLE_SIDE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an RGB image as PNG, independent of the file name."""
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
