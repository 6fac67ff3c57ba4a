"""Time of 100 detections' masks in a 1080p image: the original's way against ours (fault W15).

    .venv/bin/python benchmarks/masks.py

The original fills each polygon into a bitmap of the whole image and encodes that. Both sides run
in this process, in turns; the median of the CPU times counts.
"""

import argparse
import platform
import time

import cv2
import numpy as np

from polarmask.masks import rle_from_bitmap, rles_from_polygons, rles_from_whole_pixels

IMAGE_HW = (1080, 1920)


def draw_polygons(count, rng):
    """Return (N, 36, 2) wobbly discs of the sizes that COCO's objects have."""
    angle = np.arange(36) * 2 * np.pi / 36
    radius = np.exp(rng.uniform(np.log(10), np.log(250), (count, 1)))
    radius = radius * rng.uniform(0.8, 1.2, (count, 36))
    center = rng.uniform((0, 0), IMAGE_HW[::-1], (count, 1, 2))
    ends = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[..., None]
    return (center + ends).clip((0, 0), np.array(IMAGE_HW[::-1]) - 1).astype(np.float32)


def full_size_masks(polygons):
    rles = []
    for polygon in polygons:
        bitmap = np.zeros(IMAGE_HW, np.uint8)
        cv2.drawContours(bitmap, [np.trunc(polygon).astype(np.int32)], -1, 1, cv2.FILLED)
        rles.append(rle_from_bitmap(bitmap))
    return rles


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    polygons = draw_polygons(100, np.random.default_rng(0))
    ways = {
        "bitmap of the image for each (original)": full_size_masks,
        "bitmap of its box for each, same masks": lambda p: rles_from_whole_pixels(p, IMAGE_HW),
        "runs straight from the polygon (ours)": lambda p: rles_from_polygons(p, IMAGE_HW),
    }
    slow, same, _ = (function(polygons) for function in ways.values())
    assert slow == same
    times = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, function in ways.items():
            started = time.process_time()
            function(polygons)
            times[name].append(1000 * (time.process_time() - started))
    base = np.median(next(iter(times.values())))
    print(f"100 detections in {IMAGE_HW[1]}x{IMAGE_HW[0]}, {platform.processor()}\n")
    print("| masks | ms CPU | original's / this |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {np.median(values):.1f} | {base / np.median(values):.1f} |")


if __name__ == "__main__":
    main()
