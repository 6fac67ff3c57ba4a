"""Small drawn data with known outlines, for every test that needs a COCO folder."""

import json
from itertools import count

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from polarmask.data.coco import CocoData
from polarmask.data.summary import SplitSummary
from polarmask.inference.instances import Instances

TINY_CATEGORIES = {2: "ellipse", 5: "star", 9: "crescent"}
"""Ids with gaps, as in COCO. Ellipses and stars are star-convex, crescents are not."""

_COLOURS = {2: (220, 60, 60), 5: (70, 200, 90), 9: (80, 110, 230)}
_CELL = 40


def make_tiny_coco(folder, *, images=8, val_images=4, sizes=((96, 128), (128, 96)), seed=0):
    """Draw a COCO folder and return it: `images/` and `annotations/instances_{train,val}.json`.

    Each image is a grid of 40 px cells with at most one object a cell, so objects never overlap;
    the first cell always holds one. Polygons are exact in continuous pixel coordinates.

    Args:
        folder: Made if absent.
        images: Number of training images.
        val_images: Number of validation images.
        sizes: (height, width) of images in turn, in pixels, at least 40.
        seed: Of shapes and places.
    """
    rng = np.random.default_rng(seed)
    image_ids, annotation_ids = count(11), count(101)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for split, number in (("train", images), ("val", val_images)):
        document = {
            "images": [],
            "annotations": [],
            "categories": [{"id": key, "name": name} for key, name in TINY_CATEGORIES.items()],
        }
        for index in range(number):
            height, width = sizes[index % len(sizes)]
            image_id = next(image_ids)
            record = {
                "id": image_id,
                "file_name": f"{split}_{index:03d}.png",
                "width": width,
                "height": height,
            }
            objects = draw_objects(rng, height, width)
            document["images"].append(record)
            document["annotations"] += [
                coco_annotation(next(annotation_ids), image_id, category_id, polygon)
                for category_id, polygon in objects
            ]
            picture = paint(rng, height, width, objects)
            cv2.imwrite(str(folder / "images" / record["file_name"]), picture[:, :, ::-1])
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document))
    return folder


def draw_objects(rng, height, width):
    """Return (category id, polygon (V, 2) in pixels) of one image."""
    objects = []
    corners = [
        (x, y)
        for y in range(0, height - _CELL + 1, _CELL)
        for x in range(0, width - _CELL + 1, _CELL)
    ]
    for place, corner in enumerate(corners):
        if place and rng.random() < 0.3:
            continue
        category_id = int(rng.choice(list(TINY_CATEGORIES)))
        shape = {2: ellipse, 5: star, 9: crescent}[category_id]
        radius = rng.uniform(9, 18)
        turn = rng.uniform(0, 2 * np.pi)
        rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        center = np.array(corner) + _CELL / 2 + rng.uniform(-1, 1, size=2)
        objects.append((category_id, radius * shape() @ rotation + center))
    return objects


def ellipse(points=40):
    """Return a star-convex outline within the unit circle."""
    angle = np.arange(points) * 2 * np.pi / points
    return np.stack([np.cos(angle), 0.7 * np.sin(angle)], axis=1)


def star(spikes=5):
    """Return a concave but star-convex outline within the unit circle."""
    angle = np.arange(2 * spikes) * np.pi / spikes
    radius = np.where(np.arange(2 * spikes) % 2, 0.55, 1.0)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def crescent(points=20):
    """Return an outline that no single point sees whole, within the unit circle."""
    angle = np.linspace(-0.75, 0.75, points) * np.pi
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([direction, 0.6 * direction[::-1]])


def paint(rng, height, width, objects):
    """Return an RGB picture (H, W, 3) uint8 with noise, objects in their category's colour."""
    scale = 4
    canvas = np.full((height * scale, width * scale, 3), 40, dtype=np.uint8)
    for category_id, polygon in objects:
        # OpenCV counts from pixel centres, we from pixel corners: half a pixel apart.
        vertices = np.round(polygon * scale - 0.5).astype(np.int32)
        cv2.fillPoly(canvas, [vertices], _COLOURS[category_id])
    picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    noise = rng.normal(0, 6, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def coco_annotation(annotation_id, image_id, category_id, polygon, **fields):
    """Return a COCO annotation of one polygon (V, 2)."""
    x0, y0 = polygon.min(axis=0)
    x1, y1 = polygon.max(axis=0)
    x, y = polygon.T
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": [polygon.reshape(-1).round(2).tolist()],
        "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        "area": float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2),
        "iscrowd": 0,
        **fields,
    }


def coco_data(folder, categories, images):
    """Return a val split of these images and nothing else."""
    annotations = [annotation for image in images for annotation in image.annotations]
    crowds = [annotation.crowd for annotation in annotations]
    objects = [annotation.category for annotation in annotations if not annotation.crowd]
    counts = tuple(objects.count(index) for index in range(len(categories)))
    summary = SplitSummary(
        split="val",
        listed_images=len(images),
        listed_objects=len(crowds),
        images=len(images),
        objects=crowds.count(False),
        crowds=crowds.count(True),
    )
    return CocoData(folder, "val", categories, tuple(images), (), counts, summary)


def make_instances(image_hw, objects):
    """Return Instances from (polygon (V, 2), score, category id) in any order.

    Polygons get equally many vertices by repeating their last one, so their masks stay as given.
    """
    objects = sorted(objects, key=lambda entry: -entry[1])
    rays = max((len(polygon) for polygon, _, _ in objects), default=36)
    polygons = np.zeros((len(objects), rays, 2), dtype=np.float32)
    for row, (polygon, _, _) in enumerate(objects):
        polygons[row] = np.concatenate([polygon, np.repeat(polygon[-1:], rays - len(polygon), 0)])
    centers = polygons.mean(axis=1)
    return Instances(
        image_hw=image_hw,
        polygons=polygons,
        boxes_xywh=np.concatenate([polygons.min(1), np.ptp(polygons, axis=1)], axis=1),
        scores=np.array([score for _, score, _ in objects], dtype=np.float32),
        category_ids=np.array([category_id for _, _, category_id in objects], dtype=np.int64),
        category_names=tuple(str(category_id) for _, _, category_id in objects),
        centers=centers,
        ray_lengths=np.linalg.norm(polygons - centers[:, None], axis=2),
    )


def perfect_predictions(data, score=0.9):
    """Return the ground truth of a CocoData as Instances by image id, largest parts only."""
    return {
        image.id: make_instances(
            (image.height, image.width),
            [
                (annotation.parts[0], score, data.categories[annotation.category].id)
                for annotation in image.annotations
                if annotation.parts
            ],
        )
        for image in data.images
    }


def rle_from_bitmap(bitmap_HW):
    """Encode a mask as COCO does, with `counts` as text; nonzero is object."""
    rle = coco_mask.encode(np.asfortranarray(bitmap_HW != 0, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}
