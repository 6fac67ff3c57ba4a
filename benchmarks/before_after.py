"""A picture of what one model mistakes and another does not: docs/images/before-after.jpg.

    .venv/bin/python benchmarks/before_after.py runs/old/model runs/new/model

Each row is a val image, the first model's result at the left: of the images where mistakes became
fewer the three with the largest difference, and the one where they became most. A mistake is a
missed object (yellow) or a false one (red) at the scores that each model shows.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.evaluation.coco_ap import score_predictions
from polarmask.inference.predictor import Predictor
from polarmask.report.found_beside_truth import draw_found

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "before-after.jpg"
SIDE = 420
"""Of one image in pixels."""


def predictions_of(model, data):
    """Return what a model shows, by image id."""
    predictor = Predictor.load(model)
    return {image.id: predictor.find(read_image(data.image_path(image))) for image in data.images}


def mistakes(data, found):
    """Return the number of missed and false objects by image id."""
    scores = score_predictions(data, found)
    count = {image.id: len(image.annotations) for image in data.images}
    for image_id, owner in zip(scores.image_D.tolist(), scores.object_D.tolist(), strict=True):
        count[image_id] += -1 if owner >= 0 else 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs=2, type=Path, help="model folders, the older first")
    parser.add_argument("--data", type=Path, default=Path("data"), help="COCO folder")
    options = parser.parse_args()
    data = load_coco(options.data, "val")
    both = [predictions_of(model, data) for model in options.models]
    before, after = (mistakes(data, found) for found in both)
    fewer = sorted(before, key=lambda image: after[image] - before[image])
    chosen = [*fewer[:3], fewer[-1]]
    drawn = [draw_found(data, chosen, found, 0.0) for found in both]
    rows = [
        np.concatenate([cv2.resize(each[image], (SIDE, SIDE)) for each in drawn], axis=1)
        for image in chosen
    ]
    cv2.imwrite(str(PICTURE), np.concatenate(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    print(f"mistakes in all: {sum(before.values())} before, {sum(after.values())} after")
    print("shown:", *(f"{before[image]} and {after[image]}" for image in chosen), sep="\n  ")


if __name__ == "__main__":
    main()
