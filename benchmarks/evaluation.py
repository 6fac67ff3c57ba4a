"""COCO mask AP of 5,000 images with 100 detections each: pycocotools against ours.

    .venv/bin/python benchmarks/evaluation.py

Objects are the outlines of the eight COCO photos in tests/data, with COCO's statistics: about seven
per image, 80 categories of very different frequency, 1 % crowd regions. Detections are shifted and
scaled copies of the objects' star shapes, and false positives. Both sides start from RLE masks.
"""

import contextlib
import io
import os

os.environ["RAYON_NUM_THREADS"] = "1"  # one core, as pycocotools has

from pathlib import Path

import numpy as np
from harness import Result, main, race, wrong
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from polarmask.data.coco import Annotation, Category, CocoData, ImageRecord, load_coco
from polarmask.data.summary import SplitSummary
from polarmask.evaluation.coco_ap import score_predictions
from polarmask.geometry.masks import rle_area, rles_from_polygons
from polarmask.inference.instances import Instances

PHOTOS = Path(__file__).parents[1] / "tests" / "data" / "coco_photos"
HW = (480, 640)
CATEGORIES = 80
DETECTIONS = 100
RAYS = 36


def outlines():
    """Return the largest part of each object, centred at the origin, and its star shape."""
    parts = [
        annotation.parts[0]
        for photo in load_coco(PHOTOS, "train").images
        for annotation in photo.annotations
        if annotation.parts and len(annotation.parts[0]) > 7
    ]
    return [(part - part.mean(axis=0), star(part - part.mean(axis=0))) for part in parts]


def star(outline):
    """Return the approximate ends of 36 rays from the origin to an outline."""
    angle_V = np.arctan2(outline[:, 1], outline[:, 0])
    ray_angle_R = np.arange(RAYS) * 2 * np.pi / RAYS - np.pi
    length_R = np.interp(ray_angle_R, angle_V, np.hypot(*outline.T), period=2 * np.pi)
    return np.stack([np.cos(ray_angle_R), np.sin(ray_angle_R)], axis=1) * length_R[:, None]


def scene(count, rng, detections=DETECTIONS):
    """Return ground truth of `count` images, and detections by image id."""
    shapes = outlines()
    share = 1 / (np.arange(CATEGORIES) + 2.0)
    share /= share.sum()
    categories = tuple(Category(3 * i + 1, f"category {i}") for i in range(CATEGORIES))
    records, found = [], {}
    for image_id in range(1, count + 1):
        objects = [
            (
                rng.integers(len(shapes)),
                rng.uniform(0.5, 2),
                rng.uniform((0, 0), HW[::-1]),
                rng.choice(CATEGORIES, p=share),
            )
            for _ in range(1 + rng.poisson(6.3))
        ]
        records.append(record(image_id, objects, shapes, rng))
        copies = [
            (which, scale * rng.normal(1, 0.08), place + rng.normal(0, 4 * scale, 2), category)
            for which, scale, place, category in (objects * 3)[:detections]
        ]
        copies += [
            (
                rng.integers(len(shapes)),
                rng.uniform(0.3, 2),
                rng.uniform((0, 0), HW[::-1]),
                rng.choice(CATEGORIES, p=share),
            )
            for _ in range(detections - len(copies))
        ]
        found[image_id] = instances(copies, shapes, categories, rng)
    objects = sum(len(each.annotations) for each in records)
    summary = SplitSummary(
        split="simulated",
        listed_images=count,
        listed_objects=objects,
        images=count,
        objects=objects,
        crowds=0,
    )
    return CocoData(
        PHOTOS, "simulated", categories, tuple(records), (), (1,) * len(categories), summary
    ), found


def record(image_id, objects, shapes, rng):
    annotations = []
    for number, (which, scale, place, category) in enumerate(objects):
        crowd = bool(rng.random() < 0.01)
        [rle] = rles_from_polygons([shapes[which][0] * scale + place], HW)
        annotations.append(
            Annotation(
                id=number,
                category=category,
                parts=(),
                bbox=(0.0, 0.0, 1.0, 1.0),
                area=float(rle_area(rle)),
                crowd=crowd,
                segmentation=rle,
            )
        )
    return ImageRecord(image_id, f"{image_id}.jpg", HW[1], HW[0], tuple(annotations))


def instances(copies, shapes, categories, rng):
    polygons = np.stack([shapes[which][1] * scale + place for which, scale, place, _ in copies])
    category_N = np.array([category for *_, category in copies])
    found = Instances(
        image_hw=HW,
        polygons=polygons.clip(0, HW[::-1]).astype(np.float32),
        boxes_xywh=np.zeros((len(copies), 4), np.float32),
        scores=np.sort(rng.random(len(copies)).astype(np.float32))[::-1],
        category_ids=np.array([categories[category].id for category in category_N]),
        category_names=tuple(categories[category].name for category in category_N),
        centers=np.zeros((len(copies), 2), np.float32),
        ray_lengths=np.zeros((len(copies), RAYS), np.float32),
    )
    found.rle()
    return found


def pycocotools_scores(data, found):
    """Evaluate with pycocotools as its documentation shows; return precision and recall."""
    header = {
        "images": [{"id": one.id, "height": one.height, "width": one.width} for one in data.images],
        "categories": [{"id": one.id, "name": one.name} for one in data.categories],
    }
    truth, result = COCO(), COCO()
    objects = [
        {
            "image_id": image.id,
            "category_id": data.categories[one.category].id,
            "segmentation": one.segmentation,
            "area": one.area,
            "iscrowd": int(one.crowd),
        }
        for image in data.images
        for one in image.annotations
    ]
    detections = [
        {
            "image_id": image_id,
            "category_id": int(one.category_ids[row]),
            "segmentation": rle,
            "area": float(rle_area(rle)),
            "score": float(one.scores[row]),
        }
        for image_id, one in found.items()
        for row, rle in enumerate(one.rle())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        for index, annotations in ((truth, objects), (result, detections)):
            for number, annotation in enumerate(annotations, start=1):
                annotation["id"] = number
            index.dataset = {**header, "annotations": annotations}
            index.createIndex()
        coco_eval = COCOeval(truth, result, "segm")
        coco_eval.params.maxDets = [DETECTIONS]
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval.eval["precision"][..., 0], coco_eval.eval["recall"][..., 0]


def check_scores(scores, precision, recall):
    for mine, theirs in ((scores.precision_TQKA, precision), (scores.recall_TKA, recall)):
        if mine.shape != theirs.shape or np.abs(mine - theirs).max() > 1e-9:
            wrong("precision or recall differs from pycocotools'")


def run(quick):
    count = 100 if quick else 5000
    data, found = scene(count, np.random.default_rng(0))
    precision, recall = pycocotools_scores(data, found)
    scores = score_predictions(data, found)
    if not 0.05 < precision[precision > -1].mean() < 0.95:
        wrong("the scene is too easy or too hard to compare anything")
    check_scores(scores, precision, recall)
    fast, slow = race(
        lambda: score_predictions(data, found),
        lambda: pycocotools_scores(data, found),
        quick=quick,
        repeats=1,
    )
    name = f"COCO mask AP, {count:,} images with {DETECTIONS} detections each"
    yield Result(name, fast / 1000, slow / 1000, "s", goal=">= 10 x")
    masks = sum(len(one) for one in found.values())
    rasterise, _ = race(
        lambda: [rles_from_polygons(one.polygons, HW) for one in found.values()],
        lambda: None,
        quick=quick,
        repeats=1,
    )
    yield Result(f"rasterise these {masks:,} detections", rasterise / 1000, None, "s")


if __name__ == "__main__":
    main(run, __doc__)
