"""Which objects of the val split a model's best candidate finds, by size of object.

    .venv/bin/python benchmarks/recall_by_size.py runs/old/model runs/new/model

A candidate is what the network predicts at a location with a class score above 0.05, before any is
suppressed: what is missed here, no suppression can bring back.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import machine, markdown

from polarmask.config.overrides import override
from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.engines.torch_engines import Eager
from polarmask.geometry import masks
from polarmask.inference.model_folder import load_model
from polarmask.inference.predictor import Predictor

EVERY_CANDIDATE = ["nms_iou=1", "max_instances=50000", "pre_nms_top_k=50000"]
SIZES = ((0, 6), (6, 8), (8, 10), (10, 20), (20, np.inf))
"""Square root of an object's area in pixels."""
LEAST_IOUS = (0.5, 0.75, 0.9)


def best_ious(model, data):
    """Return the square root of each object's area and the IoU of its best candidate."""
    detector, card = load_model(model)
    card = replace(card, config=override(card.config, EVERY_CANDIDATE))
    predictor = Predictor(Eager(detector.eval()), card, torch.device("cpu"), tile=None)
    sides, ious = [], []
    for image in data.images:
        hw = (image.height, image.width)
        objects = [each for each in image.annotations if not each.crowd]
        if not objects:
            continue
        truth = [masks.rle_from_segmentation(each.segmentation, hw) for each in objects]
        [found] = predictor.predict([read_image(data.image_path(image))])
        overlap_NG = masks.rle_iou(found.rle(), truth)
        sides += [each.area**0.5 for each in objects]
        ious += overlap_NG.max(axis=0, initial=0).tolist()
    return np.array(sides), np.array(ious)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model folders")
    parser.add_argument("--data", type=Path, default=Path("data"), help="COCO folder")
    options = parser.parse_args()
    data = load_coco(options.data, "val")
    rows = []
    for model in options.models:
        side_G, iou_G = best_ious(model, data)
        for low, high in SIZES:
            own_G = iou_G[(side_G >= low) & (side_G < high)]
            recall = [f"{(own_G > least).mean():.2f}" for least in LEAST_IOUS]
            rows.append((str(model), f"{low:g} to {high:g}", str(len(own_G)), *recall))
    titles = ("model", "size, px", "objects", *(f"IoU > {each:g}" for each in LEAST_IOUS))
    print("\n".join(markdown(titles, rows)))
    print(f"on {machine()}")


if __name__ == "__main__":
    main()
