"""Pictures that show what a model found beside what is true."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import CocoData, ImageRecord
from polarmask.data.images import read_image
from polarmask.evaluation.coco_ap import score_predictions
from polarmask.inference.drawing import SKY, VERMILION, WHITE, YELLOW, Shape, draw_shapes
from polarmask.inference.instances import Instances

_SIDE = 560


def draw_found(
    data: CocoData,
    image_ids: Sequence[int],
    predictions: Mapping[int, Instances],
    min_score: float,
) -> dict[int, NDArray[np.uint8]]:
    """Draw the detections of at least a score: true ones blue, false ones red.

    Args:
        data: Ground truth.
        image_ids: Which images.
        predictions: By image id.
        min_score: Operating point.

    Returns:
        Overlays by image id; outlines of found objects are white, missed objects yellow.
    """
    records = _records(data, image_ids)
    shapes = _shapes_by_image(data, records, predictions, min_score)
    return {
        key: draw_shapes(read_image(data.image_path(record)), shapes[key], side=_SIDE)
        for key, record in records.items()
    }


def draw_true(data: CocoData, image_ids: Sequence[int]) -> dict[int, NDArray[np.uint8]]:
    """Draw the outlines of the annotations, by image id."""
    return {
        key: draw_shapes(
            read_image(data.image_path(record)),
            [
                Shape(annotation.parts, WHITE, opacity=0.0)
                for annotation in record.annotations
                if annotation.parts
            ],
            side=_SIDE,
        )
        for key, record in _records(data, image_ids).items()
    }


def _records(data: CocoData, image_ids: Sequence[int]) -> dict[int, ImageRecord]:
    wanted = set(image_ids)
    return {image.id: image for image in data.images if image.id in wanted}


def _shapes_by_image(
    data: CocoData,
    records: Mapping[int, ImageRecord],
    predictions: Mapping[int, Instances],
    min_score: float,
) -> dict[int, list[Shape]]:
    scores = score_predictions(replace(data, images=tuple(records.values())), predictions)
    shapes: dict[int, list[Shape]] = defaultdict(list)
    found: dict[int, set[int]] = defaultdict(set)
    for image_id, row, score, owner in zip(
        scores.image_D.tolist(),
        scores.row_D.tolist(),
        scores.score_D.tolist(),
        scores.object_D.tolist(),
        strict=True,
    ):
        if score < min_score:
            continue
        found[image_id].add(owner)
        polygons = tuple(predictions[image_id].parts(row))
        colour = SKY if owner >= 0 else VERMILION
        shapes[image_id].append(Shape(polygons, colour, label=f"{score:.2f}", opacity=0.3))
    for image in records.values():
        for row, annotation in enumerate(image.annotations):
            if annotation.parts:
                hit = row in found[image.id]
                shapes[image.id].append(
                    Shape(annotation.parts, WHITE if hit else YELLOW, opacity=0.0 if hit else 0.4)
                )
    return shapes
