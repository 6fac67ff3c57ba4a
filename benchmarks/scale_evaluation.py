"""What mask AP costs as images and detections grow, beside pycocotools.

.venv/bin/python benchmarks/scale_evaluation.py   pictures in docs/images, and the table
"""

import time

import numpy as np
from evaluation import check_scores, referee, scene  # first: it sets the number of threads
from frame import main
from picture import draw, growth

from polarmask.evaluation.coco_ap import score_predictions


def timed(way, *arguments):
    """Return what a way gives and its CPU time in s."""
    started = time.process_time()
    given = way(*arguments)
    return given, time.process_time() - started


def costs(sizes):
    """Return s of ours and of pycocotools for pairs of images and detections."""
    ours, theirs = [], []
    for images, detections in sizes:
        data, found = scene(images, np.random.default_rng(images), detections)
        scores, fast = timed(score_predictions, data, found)
        curves, slow = timed(referee, data, found)
        check_scores(scores, *curves)
        ours.append(fast)
        theirs.append(slow)
    return ours, theirs


def run(quick):
    if quick:
        images, fixed, detections = (10, 20), 10, (25, 50)
    else:
        images, fixed, detections = (125, 250, 500, 1000), 250, (12, 25, 50, 75, 100)
    costs([(10, 50)])  # what is loaded at the first call belongs to no size
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
