"""From network output to polygons and masks: simple reference code against ours.

    .venv/bin/python benchmarks/decode.py

The reference scores every category of every location and runs NMS category by category. The
reference for masks fills each polygon into a bitmap of the whole image, as the original code does.
Canvas size and number of outputs are those of the original's published timings.
"""

import cv2
import numpy as np
import torch
from harness import Result, main, race, wrong
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.ops import nms

from polarmask.config.settings import PostprocessConfig
from polarmask.geometry.locations import all_points
from polarmask.geometry.masks import rles_from_polygons, rles_from_whole_pixels
from polarmask.network.head import Predictions
from polarmask.network.postprocess import postprocess
from polarmask.original.rays import original_directions

CANVAS, STRIDES = (768, 1280), (8, 16, 32, 64, 128)
IMAGE_HW = (1080, 1920)
CATEGORIES, RAYS = 80, 36
ORIGINAL = PostprocessConfig(score="original")


def head_outputs(candidates, *, rays=RAYS, categories=CATEGORIES):
    """Return network outputs for one image with `candidates` class scores above the threshold."""
    random = torch.Generator().manual_seed(candidates)
    level_hws = tuple((CANVAS[0] // stride, CANVAS[1] // stride) for stride in STRIDES)
    stride_L = torch.cat(
        [torch.full((h * w,), s) for (h, w), s in zip(level_hws, STRIDES, strict=True)]
    )
    class_LC = torch.randn(len(stride_L), categories, generator=random) * 0.5 - 7
    chosen = torch.randperm(class_LC.numel(), generator=random)[:candidates]
    class_LC.view(-1)[chosen] = torch.rand(candidates, generator=random) * 4.9 - 2.9
    ray_LR = (torch.rand(len(stride_L), rays, generator=random) + 0.5) * 4 * stride_L[:, None]
    quality_L = torch.randn(len(stride_L), generator=random)
    return Predictions(class_LC[None], quality_L[None], ray_LR[None], None, level_hws)


def reference(predictions, config):
    """Decode with the original's configuration, category by category."""
    size_2 = torch.tensor(CANVAS[::-1])
    point_L2 = all_points(predictions.level_hws, STRIDES, torch.device("cpu"))
    class_LC = predictions.class_BLC[0].sigmoid()
    quality_L = predictions.quality_BL[0].sigmoid()
    kept, first = [], 0
    for rows, columns in predictions.level_hws:
        best = (class_LC * quality_L[:, None])[first : first + rows * columns].amax(dim=1)
        kept.append(first + best.topk(min(config.pre_nms_top_k, len(best))).indices)
        first += rows * columns
    kept_K = torch.cat(kept).sort().values
    direction_R2 = original_directions(predictions.ray_BLR.shape[2], like=quality_L)
    polygon_KR2 = (
        point_L2[kept_K, None] + predictions.ray_BLR[0, kept_K, :, None] * direction_R2
    ).clamp(min=0)
    polygon_KR2 = polygon_KR2.minimum(size_2 - 1)
    box_K4 = torch.cat([polygon_KR2.amin(dim=1), polygon_KR2.amax(dim=1)], dim=1)
    found = []
    for category in range(class_LC.shape[1]):
        above = class_LC[kept_K, category] > config.score_threshold
        score = (class_LC[kept_K, category] * (quality_L[kept_K] + 0.5) / 1.5)[above]
        winner = nms(box_K4[above] + torch.tensor([0, 0, 1, 1]), score, config.nms_iou)
        found += [
            (value, category, polygon)
            for value, polygon in zip(
                score[winner].tolist(), polygon_KR2[above][winner], strict=True
            )
        ]
    return sorted(found, key=lambda one: -one[0])[: config.max_instances]


def ours(predictions, config):
    return postprocess(predictions, [CANVAS], strides=STRIDES, config=config)[0]


def check_decode(predictions):
    slow, fast = reference(predictions, ORIGINAL), ours(predictions, ORIGINAL)
    if not np.allclose([one[0] for one in slow], fast.score_N, atol=1e-6):
        wrong("scores differ from those of the loop over categories")
    if [one[1] for one in slow] != fast.category_N.tolist():
        wrong("categories differ from those of the loop over categories")
    if not torch.allclose(torch.stack([one[2] for one in slow]), fast.polygon_NR2, atol=1e-3):
        wrong("polygons differ from those of the loop over categories")


def draw_polygons(count, rng, hw=IMAGE_HW):
    """Return (N, 36, 2) irregular discs with the sizes of COCO's objects."""
    angle = np.arange(RAYS) * 2 * np.pi / RAYS
    radius = np.exp(rng.uniform(np.log(10), np.log(250), (count, 1)))
    radius = radius * rng.uniform(0.8, 1.2, (count, RAYS))
    center = rng.uniform((0, 0), hw[::-1], (count, 1, 2))
    ends = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[..., None]
    return (center + ends).clip((0, 0), np.array(hw[::-1]) - 1).astype(np.float32)


def full_size_masks(polygons, hw=IMAGE_HW):
    """Fill each polygon into a bitmap of the whole image, as the original code does."""
    rles = []
    for polygon in polygons:
        bitmap = np.zeros(hw, np.uint8)
        cv2.drawContours(bitmap, [np.trunc(polygon).astype(np.int32)], -1, 1, cv2.FILLED)
        rles.append(coco_mask.encode(np.asfortranarray(bitmap)))
    return [{**rle, "counts": rle["counts"].decode()} for rle in rles]


def pycocotools_masks(polygons):
    """Rasterise with pycocotools, as it does for annotations."""
    index = COCO()
    index.imgs = {1: dict(zip(("height", "width"), IMAGE_HW, strict=True))}
    masks = [
        index.annToRLE({"image_id": 1, "segmentation": [polygon.astype(float).ravel().tolist()]})
        for polygon in polygons
    ]
    return [{**mask, "counts": mask["counts"].decode()} for mask in masks]


@torch.inference_mode()
def run(quick):
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for candidates, name, goal in ((490, "490", "<= 6 ms"), (95_000, "95,000", "<= 15 ms")):
        predictions = head_outputs(candidates)
        check_decode(predictions)
        fast, product, slow = race(
            lambda predictions=predictions: ours(predictions, ORIGINAL),
            lambda predictions=predictions: ours(predictions, PostprocessConfig()),
            lambda predictions=predictions: reference(predictions, ORIGINAL),
            quick=quick,
        )
        yield Result(f"decode {name} candidates, original mode", fast, slow, "ms", goal=goal)
        yield Result(f"decode {name} candidates, default mode", product, None, "ms", goal=goal)
    polygons = draw_polygons(100, np.random.default_rng(0))
    if rles_from_whole_pixels(polygons, IMAGE_HW) != full_size_masks(polygons):
        wrong("masks differ from those of bitmaps of the whole image")
    if rles_from_polygons(polygons, IMAGE_HW) != pycocotools_masks(polygons):
        wrong("masks differ from those of pycocotools")
    same, exact, slow = race(
        lambda: rles_from_whole_pixels(polygons, IMAGE_HW),
        lambda: rles_from_polygons(polygons, IMAGE_HW),
        lambda: full_size_masks(polygons),
        quick=quick,
    )
    name = "100 masks of a 1080p image"
    yield Result(f"{name}, original mode", same, slow, "ms", goal="<= 15 ms")
    yield Result(f"{name}, exact", exact, slow, "ms", goal="<= 15 ms")


if __name__ == "__main__":
    main(run, __doc__)
