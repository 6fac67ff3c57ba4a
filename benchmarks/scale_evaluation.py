"""Cost of mask AP as images and detections grow, beside pycocotools.

.venv/bin/python benchmarks/scale_evaluation.py   charts in docs/images, and the table
"""

import time

import numpy as np
from chart import draw, growth
from evaluation import (
    check_scores,
    pycocotools_scores,
    scene,
)  # first: it sets the number of threads
from harness import main

from polarmask.evaluation.coco_ap import score_predictions


def timed(function, *arguments):
    """Return a function's result and its CPU time in seconds."""
    started = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - started


def costs(sizes):
    """Return seconds of ours and of pycocotools for each (images, detections) pair."""
    ours, theirs = [], []
    for images, detections in sizes:
        data, found = scene(images, np.random.default_rng(images), detections)
        scores, fast = timed(score_predictions, data, found)
        curves, slow = timed(pycocotools_scores, data, found)
        check_scores(scores, *curves)
        ours.append(fast)
        theirs.append(slow)
    return ours, theirs


def run(quick):
    if quick:
        images, fixed, detections = (10, 20), 10, (25, 50)
    else:
        images, fixed, detections = (125, 250, 500, 1000), 250, (12, 25, 50, 75, 100)
    costs([(10, 50)])  # warm-up: imports and compilation at the first call
    for name, label_of_x, sizes, shown in (
        ("evaluation-by-images", "images", [(n, 100) for n in images], images),
        ("evaluation-by-detections", f"detections in each of {fixed} images",
         [(fixed, n) for n in detections], detections),
    ):  # fmt: skip
        ours, theirs = costs(sizes)
        points = list(zip(shown, ours, strict=True))
        yield growth("COCO mask AP", label_of_x, points, "s")
        if not quick:
            draw(
                name,
                label_of_x,
                points,
                "s",
                ("pycocotools", list(zip(shown, theirs, strict=True))),
            )


if __name__ == "__main__":
    main(run, __doc__)
