"""Cost of labels as objects, rays, image size and data set grow.

    .venv/bin/python benchmarks/scale.py                      charts in docs/images, and the table
    .venv/bin/python benchmarks/scale.py --images 118000      COCO's size: about 30 minutes

Data sets are simulated with COCO's statistics (7.3 objects per image, areas and vertex counts from
log-normal distributions fitted to COCO's quartiles); the image files are links to a few real JPEGs.
Each data set is labelled by `polarmask precompute` in its own process, whose peak memory is read.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from chart import draw, growth
from harness import Result, make_parser, race, report, wrong
from rays import CANVAS, LABELS, MODEL, together

from polarmask.labels.compiled_targets import assign_native

HERE = Path(__file__).parent
PHOTOS = HERE.parent / "tests" / "data" / "coco_photos" / "images"
OBJECTS_PER_IMAGE = 7.3
IMAGE_HW = (480, 640)
CHARTED = 100_000
"""Smallest data set (images) that gets a chart; `make bench` uses a smaller one."""


def draw_objects(rng, count, hw):
    """Return outlines with the sizes and vertex counts of COCO's objects."""
    outlines = []
    for _ in range(count):
        side = min(float(np.exp(rng.normal(np.log(57), 1.1))), min(hw) * 0.9)
        corners = int(np.clip(np.exp(rng.normal(np.log(21), 0.7)), 4, 200))
        angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radius = side / 2 * rng.uniform(0.6, 1.1, corners)
        center = rng.uniform(side / 2, np.array(hw[::-1]) - side / 2)
        ends = center + np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
        outlines.append(ends.clip(0, hw[::-1]))
    return outlines


def write_data(folder, num_images):
    """Write a COCO folder of simulated objects on links to real JPEGs."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    sources = []
    for path in sorted(PHOTOS.glob("*.jpg")):
        sources.append(folder / path.name)
        cv2.imwrite(str(sources[-1]), cv2.resize(cv2.imread(str(path)), IMAGE_HW[::-1]))
    number = 0
    size = {"width": IMAGE_HW[1], "height": IMAGE_HW[0]}
    category = {"id": 1, "name": "thing"}
    with (folder / "annotations" / "instances_train.json").open("w", encoding="utf-8") as file:
        images = []
        file.write('{"annotations": [')
        for image_id in range(1, num_images + 1):
            name = f"{image_id}.jpg"
            os.link(sources[image_id % len(sources)], folder / "images" / name)
            images.append({"id": image_id, "file_name": name, **size})
            for outline in draw_objects(rng, 1 + rng.poisson(OBJECTS_PER_IMAGE - 1), IMAGE_HW):
                number += 1
                entry = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0}
                entry["segmentation"] = [outline.round(2).flatten().tolist()]
                file.write((", " if number > 1 else "") + json.dumps(entry))
        file.write(f'], "images": {json.dumps(images)}, "categories": {json.dumps([category])}}}')
    return number


def label_here(data, out, workers):
    """Label a data set in this process; print CPU seconds, peak memory and store size."""
    from feed import CONFIG

    from polarmask.labels.precompute import Workers, precompute

    torch.set_num_threads(1)
    before = peak_mb()
    started = time.process_time()
    precompute(data, out, CONFIG, splits=("train",), workers=Workers(workers))
    seconds = time.process_time() - started
    stored = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(json.dumps([seconds, peak_mb() - before, stored]))


def peak_mb():
    """Return this process's peak memory; getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def label(num_images, workers=0):
    """Label a simulated data set in another process; return what `label_here` measured."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "labels"
        objects = write_data(data, num_images)
        command = [sys.executable, __file__, "--label", str(data), str(out), str(workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return *json.loads(done.stdout), objects


def cost(outlines, canvas, model, quick):
    """Return CPU milliseconds of an image's labels."""
    (ms,) = race(
        lambda: assign_native(outlines, canvas, model=model, labels=LABELS), quick=quick, repeats=15
    )
    return ms


def series(quick):
    """Return the series: chart name, axis label, pairs of quantity and ms."""
    rng = np.random.default_rng(1)

    def objects(count, hw=CANVAS):
        return [outline.astype(np.float32) for outline in draw_objects(rng, count, hw)]

    few = objects(10)
    by_objects = [(n, cost(objects(n), CANVAS, MODEL, quick)) for n in (1, 25, 50, 100, 200, 400)]
    by_rays = [
        (n, cost(few, CANVAS, replace(MODEL, num_rays=n), quick)) for n in (12, 36, 72, 144, 288)
    ]
    canvases = [(side, side * 5 // 3 // 128 * 128) for side in (384, 768, 1152, 1536, 2304)]
    by_pixels = [
        (
            round(height * width / 1e6, 2),
            cost([o * (height / 768) for o in few], (height, width), MODEL, quick),
        )
        for height, width in canvases
    ]
    return [
        ("labels-by-objects", "objects in the image", by_objects),
        ("labels-by-rays", "rays", by_rays),
        ("labels-by-pixels", "million pixels of the input", by_pixels),
    ]


def run(quick):
    torch.set_num_threads(1)
    rng = np.random.default_rng(2)
    crowd = [outline.astype(np.float32) for outline in draw_objects(rng, 400, CANVAS)]
    native, batch = assign_native(crowd, CANVAS, model=MODEL, labels=LABELS), together([crowd])
    same = np.array_equal(native[0], batch.location_P3) and np.array_equal(
        native[1], batch.object_P
    )
    if not same or np.abs(native[2] - batch.ray_PR.numpy()).max() > 1e-3:
        wrong("400 objects in one image: the two ways assign different locations")
    for name, label_of_x, points in series(quick):
        yield growth("labels of an image", label_of_x, points)
        if not quick:
            draw(name, label_of_x, points)
    if not quick:
        yield from data_set(11_800)


def data_set(num_images):
    """Label data sets of a tenth, half and all of `num_images`."""
    sizes = (num_images // 10, num_images // 2, num_images)
    measured = {size: label(size) for size in sizes}
    seconds, memory, stored, objects = measured[num_images]
    small_seconds, small_memory = measured[sizes[0]][:2]
    yield Result(
        f"precompute, {num_images:,} images, one process (reference: {sizes[0]:,} images)",
        1000 * seconds / num_images, 1000 * small_seconds / sizes[0], "ms per image",
    )  # fmt: skip
    yield Result(
        f"memory of precompute, {num_images:,} images (reference: {sizes[0]:,} images)",
        memory, small_memory, "MB",
    )  # fmt: skip
    size = stored / objects
    yield Result("label store, per object and input size", size, None, "bytes", "<= 1024 bytes")
    if num_images >= CHARTED:
        draw("precompute-memory", "images", [(size, measured[size][1]) for size in sizes], "MB")
        draw("precompute-time", "images", [(size, measured[size][0]) for size in sizes], "s")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, help="label a data set of this size, nothing else")
    parser.add_argument("--label", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.label:
        data, out, workers = options.label
        label_here(Path(data), Path(out), int(workers))
        return
    if options.images:
        report(lambda: data_set(options.images), options.json)
    else:
        report(lambda: run(options.quick), options.json)


if __name__ == "__main__":
    main()
