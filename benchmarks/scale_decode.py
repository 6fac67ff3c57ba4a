"""Cost of decoding and masks as candidates, rays, categories, detections and image size grow.

.venv/bin/python benchmarks/scale_decode.py       charts in docs/images, and the table
"""

import cv2
import numpy as np
import torch
from chart import draw, growth
from decode import (
    IMAGE_HW,
    check_decode,
    draw_polygons,
    full_size_masks,
    head_outputs,
    ours,
)
from harness import main, race, wrong

from polarmask.config.settings import PostprocessConfig
from polarmask.geometry.masks import rles_from_polygons, rles_from_whole_pixels

CANDIDATES = 20_000


def decode_cost(quick, candidates=CANDIDATES, **shape):
    """Check decoding, then return its CPU milliseconds from network output to polygons."""
    predictions = head_outputs(candidates, **shape)
    check_decode(predictions)
    (ms,) = race(lambda: ours(predictions, PostprocessConfig()), quick=quick, repeats=15)
    return ms


def mask_cost(quick, count, hw=IMAGE_HW):
    """Check `count` masks, then return their CPU milliseconds."""
    polygons = draw_polygons(count, np.random.default_rng(count), hw)
    if rles_from_whole_pixels(polygons, hw) != full_size_masks(polygons, hw):
        wrong("masks differ from those of bitmaps of the whole image")
    (ms,) = race(lambda: rles_from_polygons(polygons, hw), quick=quick, repeats=15)
    return ms


@torch.inference_mode()
def run(quick):
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    candidates = (500, 20_000, 40_000, 70_000, 95_000)
    heights = (540, 1080, 2160, 4320)
    charts = [
        ("decode-by-candidates", "decode", "candidates",
         [(n, decode_cost(quick, n)) for n in candidates[:: 4 if quick else 1]]),
        ("decode-by-rays", "decode", "rays",
         [(n, decode_cost(quick, rays=n)) for n in (12, 36, 72, 144, 288)]),
        ("decode-by-categories", "decode", "categories",
         [(n, decode_cost(quick, categories=n)) for n in (20, 80, 160, 320)]),
        ("masks-by-detections", "masks of a 1080p image", "detections",
         [(n, mask_cost(quick, n)) for n in (10, 50, 100, 200, 400)]),
        ("masks-by-height", "masks of 100 detections of one size", "height of the image, pixels",
         [(n, mask_cost(quick, 100, (n, n * 16 // 9))) for n in heights[: 2 if quick else 4]]),
    ]  # fmt: skip
    for name, what, label_of_x, points in charts:
        yield growth(what, label_of_x, points)
        if not quick:
            draw(name, label_of_x, points)


if __name__ == "__main__":
    main(run, __doc__)
