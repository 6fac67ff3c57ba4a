"""Time and memory of one image's labels: the original's way against ours (faults W1 and W18).

    .venv/bin/python benchmarks/rays.py

The original's way is said again here in plain numpy: location by location, ray by ray, degree by
degree, and targets as dense arrays over all locations. Both sides run in this process, on one
thread, in turns; the median of the CPU times counts.
"""

import argparse
import platform
import time

import numpy as np
import torch

from polarmask.config import LabelConfig, ModelConfig
from polarmask.original_rays import binned_rays, largest_contour, mass_center
from polarmask.rays import Polygons, cast_rays
from polarmask.targets import all_locations, assign, assign_original, level_points

CANVAS = (768, 1280)
MODEL = ModelConfig()


def draw_objects(count, rng):
    """Return polygons (V, 2) of wobbly discs and their bitmaps."""
    polygons, bitmaps = [], []
    rows, columns = np.mgrid[: CANVAS[0], : CANVAS[1]] + 0.5
    angle = np.arange(400) * 2 * np.pi / 400
    for _ in range(count):
        radius = np.exp(rng.uniform(np.log(15), np.log(150)))
        x, y = rng.uniform(radius, CANVAS[1] - radius), rng.uniform(radius, CANVAS[0] - radius)
        wave, turn = rng.integers(2, 7), rng.uniform(0, 2 * np.pi)

        def border(at, radius=radius, wave=wave, turn=turn):
            return radius * (0.8 + 0.2 * np.sin(wave * at + turn))

        ends = np.stack([np.cos(angle), np.sin(angle)], axis=1) * border(angle)[:, None]
        polygons.append(torch.from_numpy(ends + np.array([x, y])).float())
        distance = np.hypot(columns - x, rows - y)
        bitmaps.append((distance < border(np.arctan2(rows - y, columns - x))).astype(np.uint8))
    return polygons, bitmaps


def original_loop(points, contour):
    """Return ray lengths of one object's locations, one ray at a time."""
    rays = np.zeros((len(points), 36), np.float32)
    for row, (x, y) in enumerate(points):
        dx, dy = (contour - (x, y)).astype(np.float32).T
        angle = np.degrees(np.arctan2(dx, dy))
        angle = np.where(angle < 0, angle + 360, angle).astype(int)
        distance = np.hypot(dx, dy)
        for ray in range(36):
            for step in (0, 1, -1, 2, -2, 3, -3):
                if 10 * ray + step in angle:
                    rays[row, ray] = distance[angle == 10 * ray + step].max()
                    break
            else:
                rays[row, ray] = 1e-6
    return rays


def dense_bytes(num_objects, num_locations):
    """Return what the original holds for one image: sides of all boxes, then all targets."""
    sides = np.zeros((num_locations, num_objects, 4), np.float32)
    regions = np.zeros((num_locations, num_objects, 4), np.float32)
    targets = np.zeros((num_locations, 1 + 4 + 36), np.float32)
    return sides.nbytes + regions.nbytes + targets.nbytes


def cpu_time(function):
    started = time.process_time()
    function()
    return 1000 * (time.process_time() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    polygons, bitmaps = draw_objects(options.objects, np.random.default_rng(0))
    contours = [largest_contour(bitmap) for bitmap in bitmaps]
    tensors = [torch.from_numpy(contour) for contour in contours]
    center_G2 = torch.tensor([mass_center(contour) for contour in contours]).float()
    box_G4 = torch.from_numpy(np.array([[*c.min(0), *c.max(0)] for c in contours])).float()
    labels = LabelConfig(mode="original")
    found = assign_original(tensors, center_G2, box_G4, CANVAS, model=MODEL, labels=labels)
    point_P2 = level_points(found.location_P3, MODEL.strides).float()
    owner_P = found.object_P.numpy()

    flat = Polygons.from_vertices(polygons)

    def original():
        for owner, contour in enumerate(contours):
            original_loop(point_P2.numpy()[owner_P == owner], contour)

    ways = {
        "original's loop, rays only": original,
        "the same bins, rays only": lambda: binned_rays(point_P2, found.object_P, tensors, 36),
        "exact rays, rays only": lambda: cast_rays(point_P2, found.object_P, flat, 36),
        "exact rays with the whole assignment": lambda: assign(
            polygons, CANVAS, model=MODEL, labels=LabelConfig()
        ),
    }
    for function in ways.values():
        function()
    times = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, function in ways.items():
            times[name].append(cpu_time(function))
    slow = np.median(times["original's loop, rays only"])
    print(f"{options.objects} objects, {len(point_P2)} positives, {platform.processor()}\n")
    print("| one image | ms CPU | original's / this |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {np.median(values):.1f} | {slow / np.median(values):.1f} |")
    ours = assign(polygons, CANVAS, model=MODEL, labels=LabelConfig())
    held = sum(value.nbytes for value in vars(ours).values())
    dense = dense_bytes(len(polygons), len(all_locations(CANVAS, MODEL.strides)))
    print("\n| targets of one image | kB | original's / this |\n|---|---|---|")
    print(f"| dense, as the original has them | {dense / 1000:.0f} | 1.0 |")
    print(f"| positives only | {held / 1000:.0f} | {dense / held:.0f} |")


if __name__ == "__main__":
    main()
