"""Objects redrawn from exact rays: what a perfect network would return.

Dimension key
    G: objects of one image    S: shapes that are drawn: objects, or all their parts
    R: rays    2: (x, y) in pixels of the image
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from polarmask.data.coco import Annotation, CocoData, ImageRecord
from polarmask.geometry import masks
from polarmask.geometry.rays import Polygons, cast_rays, decode_rays
from polarmask.inference.instances import Instances
from polarmask.system.progress_bar import progress_bar


def draw_from_rays(
    data: CocoData, num_rays: int, parts: Literal["largest", "all"]
) -> tuple[dict[int, Instances], dict[tuple[int, int], float]]:
    """Redraw every object from exact rays around its centre of mass, or each part around its own.

    Returns:
        Instances by image id, and mask IoU with the annotation by image id and row.
    """
    predictions, iou_of = {}, {}
    for image in progress_bar(data.images, desc=f"{num_rays} rays", unit="image"):
        objects = [annotation for annotation in image.annotations if annotation.parts]
        if not objects:
            continue
        found = _exact_instances(image, objects, data, num_rays, parts)
        predictions[image.id] = found
        for row, (rle, annotation) in enumerate(zip(found.rle(), objects, strict=True)):
            truth = masks.rle_from_segmentation(
                annotation.segmentation, (image.height, image.width)
            )
            iou_of[image.id, row] = float(masks.rle_iou([rle], [truth])[0, 0])
    return predictions, iou_of


def _exact_instances(
    image: ImageRecord,
    objects: Sequence[Annotation],
    data: CocoData,
    num_rays: int,
    parts: Literal["largest", "all"],
) -> Instances:
    shapes = [a.parts if parts == "all" else a.parts[:1] for a in objects]
    count_G = np.array([len(each) for each in shapes])
    first_G = np.cumsum(count_G) - count_G  # an object's parts follow each other, the largest first
    polygons = Polygons.from_vertices([torch.from_numpy(part) for each in shapes for part in each])
    _, center_S2 = polygons.area_and_centroid()
    ray_SR, _ = cast_rays(center_S2, torch.arange(len(center_S2)), polygons, num_rays)
    limit_2 = torch.tensor([image.width, image.height])
    polygon_SR2 = decode_rays(center_S2, ray_SR).clamp(min=0).minimum(limit_2).float().numpy()
    low_G2 = np.minimum.reduceat(polygon_SR2.min(axis=1), first_G)
    high_G2 = np.maximum.reduceat(polygon_SR2.max(axis=1), first_G)
    categories = [data.categories[annotation.category] for annotation in objects]
    return Instances(
        image_hw=(image.height, image.width),
        polygons=polygon_SR2[first_G],
        boxes_xywh=np.concatenate([low_G2, high_G2 - low_G2], axis=1),
        scores=np.ones(len(objects), dtype=np.float32),
        category_ids=np.array([category.id for category in categories], dtype=np.int64),
        category_names=tuple(category.name for category in categories),
        centers=center_S2.float().numpy()[first_G],
        ray_lengths=ray_SR.float().numpy()[first_G],
        further_parts={
            row: polygon_SR2[first + 1 : first + count]
            for row, (first, count) in enumerate(zip(first_G, count_G, strict=True))
            if count > 1
        },
    )
