"""Labels of one image: simple reference code and the original's method against ours.

    .venv/bin/python benchmarks/rays.py

The objects are those of the eight COCO photos in tests/data, two photos on one canvas of 1280x768:
as many objects and positives per image as in COCO. The original's method is re-implemented here in
plain numpy: location by location, ray by ray, degree by degree, with dense target arrays.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from harness import Result, main, race, wrong

from polarmask.config.input_settings import InputConfig
from polarmask.config.presets import tiny
from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.data.coco import load_coco
from polarmask.geometry.locations import all_locations, level_points
from polarmask.geometry.masks import bitmap_from_rle, rle_from_segmentation, rles_from_polygons
from polarmask.geometry.outlines import read_outline
from polarmask.geometry.rays import Polygons
from polarmask.labels.compiled_targets import assign_native
from polarmask.labels.image_labels import label_image
from polarmask.labels.targets import assign_batch
from polarmask.original.labels import assign_original
from polarmask.original.rays import binned_rays, largest_contour, mass_center

PHOTOS = Path(__file__).parents[1] / "tests" / "data" / "coco_photos"
CANVAS = (768, 1280)
MODEL = ModelConfig(backbone_norm="group")
LABELS = LabelConfig()


def scenes():
    """Return outlines by image: the largest part of every object of two photos."""
    photos = load_coco(PHOTOS, "train").images
    found = []
    for pair in zip(photos[::2], photos[1::2], strict=True):
        scaled = [
            (annotation.parts[0] * (CANVAS[1] / photo.width, CANVAS[0] / photo.height))
            for photo in pair
            for annotation in photo.annotations
            if annotation.parts
        ]
        found.append([outline.astype(np.float32) for outline in scaled])
    return found


def reference(outlines):
    """Return the rays of every positive location: test each location, cast each ray alone."""
    location_L3 = all_locations(CANVAS, MODEL.strides)
    point_L2 = level_points(location_L3, MODEL.strides).double().numpy()
    level_L, stride_L = location_L3[:, 0].numpy(), np.array(MODEL.strides)[location_L3[:, 0]]
    range_L2 = np.array(LABELS.level_ranges)[level_L]
    owner, smallest = np.full(len(point_L2), -1), np.full(len(point_L2), np.inf)
    for number, outline in enumerate(outlines):
        polygon = outline.astype(np.float64)
        low, high = polygon.min(axis=0), polygon.max(axis=0)
        center = centroid(polygon)
        sides = np.concatenate([point_L2 - low, high - point_L2], axis=1)
        fits = (sides.min(axis=1) > 0) & (sides.max(axis=1) >= range_L2[:, 0])
        fits &= sides.max(axis=1) <= range_L2[:, 1]
        fits &= np.abs(point_L2 - center).max(axis=1) < LABELS.center_radius * stride_L
        area = (high - low).prod()
        for place in np.flatnonzero(fits):
            if area < smallest[place] and contains(point_L2[place], polygon):
                owner[place], smallest[place] = number, area
    return {
        (int(owner[place]), *location_L3[place].tolist()): [
            farthest(point_L2[place], outlines[owner[place]], 2 * math.pi * ray / MODEL.num_rays)
            for ray in range(MODEL.num_rays)
        ]
        for place in np.flatnonzero(owner >= 0)
    }


def centroid(polygon):
    start, stop = polygon - polygon[0], np.roll(polygon, -1, axis=0) - polygon[0]
    cross = start[:, 0] * stop[:, 1] - start[:, 1] * stop[:, 0]
    return polygon[0] + ((start + stop) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def contains(point, polygon):
    (ax, ay), (bx, by) = polygon.T, np.roll(polygon, -1, axis=0).T
    rows = (ay > point[1]) != (by > point[1])
    at = ax[rows] + (point[1] - ay[rows]) / (by - ay)[rows] * (bx - ax)[rows]
    return bool((point[0] < at).sum() % 2)


def farthest(point, polygon, angle):
    """Solve point + t * direction = a + u * (b - a) for every edge."""
    (ax, ay), (bx, by) = polygon.T.astype(np.float64), np.roll(polygon, -1, axis=0).T
    dx, dy = math.cos(angle), math.sin(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = dy * (bx - ax) - dx * (by - ay)
        t = ((ay - point[1]) * (bx - ax) - (ax - point[0]) * (by - ay)) / determinant
        u = ((ay - point[1]) * dx - (ax - point[0]) * dy) / determinant
    return t[(t >= 0) & (u >= -1e-9) & (u <= 1 + 1e-9)].max()


def together(images):
    """Assign the locations of all images at once in torch."""
    image_G = torch.arange(len(images)).repeat_interleave(torch.tensor([len(o) for o in images]))
    vertices = [torch.from_numpy(outline) for own in images for outline in own]
    canvas_I2 = torch.tensor([CANVAS] * len(images))
    polygons = Polygons.from_vertices(vertices)
    return assign_batch(polygons, image_G, canvas_I2, model=MODEL, labels=LABELS)


def check(images, ours):
    """Stop unless all ways agree: locations exactly, rays within 1e-3 px."""
    for number, (outlines, (location_P3, object_P, ray_PR)) in enumerate(
        zip(images, ours, strict=True)
    ):
        slow = reference(outlines)
        fast = {
            (owner, *location): rays
            for owner, location, rays in zip(
                object_P.tolist(), location_P3.tolist(), ray_PR.tolist(), strict=True
            )
        }
        lost = set(range(len(outlines))) - {owner for owner, *_ in slow}
        if {key for key in fast if key[0] not in lost} != set(slow):
            wrong(f"image {number}: locations differ from the reference")
        worst = max(np.abs(np.subtract(fast[key], rays)).max() for key, rays in slow.items())
        if worst > 1e-3:
            wrong(f"image {number}: a ray is {worst:.2g} px off")
    batch = together(images)
    if not np.array_equal(batch.location_P3, np.concatenate([one[0] for one in ours])):
        wrong("torch chooses different locations")
    if np.abs(batch.ray_PR.numpy() - np.concatenate([one[2] for one in ours])).max() > 1e-3:
        wrong("torch casts different rays")


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
    return rays[:, (9 - np.arange(36)) % 36]


def dense_bytes(num_objects, num_locations):
    """Return the size of the original's arrays for one image: all boxes, then all targets."""
    sides = np.zeros((num_locations, num_objects, 4), np.float32)
    regions = np.zeros((num_locations, num_objects, 4), np.float32)
    targets = np.zeros((num_locations, 1 + 4 + 36), np.float32)
    return sides.nbytes + regions.nbytes + targets.nbytes


def binned(outlines):
    """Return contours, and the locations that the original assigns to them."""
    bitmaps = [
        bitmap_from_rle(rle).astype(np.uint8) for rle in rles_from_polygons(outlines, CANVAS)
    ]
    contours = [largest_contour(bitmap) for bitmap in bitmaps]
    tensors = [torch.from_numpy(contour) for contour in contours]
    center_G2 = torch.tensor([mass_center(contour) for contour in contours]).float()
    box_G4 = torch.from_numpy(np.array([[*c.min(0), *c.max(0)] for c in contours])).float()
    labels = LabelConfig(mode="original")
    found = assign_original(tensors, center_G2, box_G4, CANVAS, model=MODEL, labels=labels)
    return contours, level_points(found.location_P3, MODEL.strides).float(), found.object_P


def read_and_label():
    """Return a function that labels all photos, from parsed JSON to stored labels."""
    document = json.loads((PHOTOS / "annotations" / "instances_train.json").read_bytes())
    records = load_coco(PHOTOS, "train").images
    raw = {record.id: [] for record in records}
    for entry in document["annotations"]:
        raw[entry["image_id"]].append(entry)
    images = InputConfig(short_side=768, max_side=1280)
    config = replace(tiny(), input=images, model=MODEL, labels=LABELS)

    def once():
        for record in records:
            objects = [
                read_outline(entry, (record.height, record.width), crowd=False)
                for entry in raw[record.id]
            ]
            for one in objects:
                rle_from_segmentation(one.segmentation, (record.height, record.width))
            label_image(record, config)

    return once, len(records), sum(len(entries) for entries in raw.values())


def run(quick):
    torch.set_num_threads(1)
    images = scenes()
    ours = [assign_native(own, CANVAS, model=MODEL, labels=LABELS) for own in images]
    check(images, ours)
    count = len(images)
    objects = sum(len(own) for own in images) / count
    positives = sum(len(one[1]) for one in ours) / count
    scene = f"{objects:.0f} objects, {positives:.0f} positives, 1280x768"

    def native():
        for own in images:
            assign_native(own, CANVAS, model=MODEL, labels=LABELS)

    fast, slow, torch_ms = race(
        native, lambda: [reference(own) for own in images], lambda: together(images), quick=quick
    )
    yield Result(
        f"compute an image's labels: centre, assignment, exact rays ({scene})",
        fast / count, slow / count, "ms", goal="<= 4 ms",
    )  # fmt: skip
    yield Result(
        f"the same in torch on the CPU, {count} images per batch",
        torch_ms / count,
        slow / count,
        "ms",
    )
    once, photos, annotations = read_and_label()
    (all_ms,) = race(once, quick=quick)
    yield Result(
        f"labels of a photo from parsed JSON, with masks and reachable IoU "
        f"({annotations / photos:.1f} objects)",
        all_ms / photos, None, "ms", goal="<= 12 ms",
    )  # fmt: skip
    contours, point_P2, object_P = binned(images[0])
    tensors = [torch.from_numpy(contour) for contour in contours]
    owner_P = object_P.numpy()

    def loop():
        return np.concatenate(
            [original_loop(point_P2.numpy()[owner_P == g], c) for g, c in enumerate(contours)]
        )

    def bins():
        return binned_rays(point_P2, object_P, tensors, 36)

    if not np.allclose(bins().numpy(), loop(), atol=1e-3):
        wrong("the original's rays differ from those of its loop")
    fast, slow = race(bins, loop, quick=quick)
    yield Result(
        "rays of an image by the original's method (reference: its loop)", fast, slow, "ms"
    )
    held = sum(array.nbytes for array in ours[0])
    dense = dense_bytes(len(images[0]), len(all_locations(CANVAS, MODEL.strides)))
    yield Result(
        "memory for an image's targets (reference: the original's dense arrays)",
        held / 1e3,
        dense / 1e3,
        "kB",
    )


if __name__ == "__main__":
    main(run, __doc__)
