"""What the scripts of this folder share. Imports numpy alone: StarDist's environment has no torch.

Dimension key
    I: images    H, W: rows and columns
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

TRAINING, PREDICTIONS = "training.json", "predictions.json"
LOW_SCORE = 0.05
"""Detections from here on count for mask AP, as in our presets."""


def user_seconds():
    """Return the user CPU time of this process and of its finished children."""
    used = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(who).ru_utime for who in used)


def read_split(data, split):
    """Return a split's images (I, H, W) uint8 and label images (I, H, W) int32."""
    with np.load(data / f"{split}.npz") as held:
        return held["images"], held["labels"]


def milliseconds(find, images):
    """Return the median CPU time per image; the first is found once more before, to warm up."""
    times = []
    find(images[0])
    for image in images:
        started = time.process_time()
        find(image)
        times.append(1000 * (time.process_time() - started))
    return float(np.median(times))


def main(train, predict, doc):
    """Run `train(data, out, seconds)` or `predict(data, out)`, which return what is written."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("part", choices=("train", "predict"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, help="user CPU time of the training")
    options = parser.parse_args()
    if options.part == "train":
        _write(options.out / TRAINING, train(options.data, options.out, options.seconds))
    else:
        _write(options.out / PREDICTIONS, predict(options.data, options.out))


def _write(path, record):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.rename(path)
