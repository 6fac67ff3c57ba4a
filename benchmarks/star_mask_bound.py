"""How well 36 rays could fit if they learned from masks: a bound for a loss that the code lacks.

    .venv/bin/python benchmarks/star_mask_bound.py --data COCO_FOLDER --split train

Rays of each object start as today's labels, the farthest crossings with the outline, and descend
the loss of a soft star mask: the outline at an angle p behind ray k, where rays are an angle D
apart, is R(p) = r[k] r[k+1] sin D / (r[k] sin p + r[k+1] sin(D - p)), and a point at distance d is
inside with probability sigmoid((R - d) / t). The truth is sampled from the object's mask, so holes
and parts that no ray reaches count. Prints mask IoU and COCO mask AP of both. A hundred objects
take half a minute.

Dimension key
    N: objects of an image    R: rays    S: sampled points    2: (x, y) in pixels of the image
"""

import argparse
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from polarmask.data.coco import load_coco
from polarmask.evaluation.evaluate import evaluate_predictions
from polarmask.evaluation.exact_rays import draw_from_rays
from polarmask.geometry import masks
from polarmask.geometry.rays import decode_rays
from polarmask.system.progress_bar import progress_bar

RAYS = 36
SPACING = 2 * math.pi / RAYS
SIDE = 96
"""Points along each side of an object's box."""
STEPS, RATE = 150, 0.03
MARGIN = 0.1
"""Of the box, on each side, in which points are sampled, too."""


def inside(ray_R, distance_S, angle_S, softness):
    """Return the probability (S,) that points at an angle and distance lie in the star shape."""
    ray_S = (angle_S / SPACING).long() % RAYS
    past_S = angle_S % SPACING
    first_S, second_S = ray_R[ray_S], ray_R[(ray_S + 1) % RAYS]
    slant_S = first_S * past_S.sin() + second_S * (SPACING - past_S).sin()
    edge_S = first_S * second_S * math.sin(SPACING) / slant_S.clamp(min=1e-6)
    return ((edge_S - distance_S) / softness).sigmoid()


def fitted(ray_R, center_2, bitmap, box):
    """Return the rays after descending the loss on one object's mask (H, W)."""
    low_2, high_2 = np.array(box[:2]), np.array(box[2:])
    low_2, high_2 = low_2 - MARGIN * (high_2 - low_2), high_2 + MARGIN * (high_2 - low_2)
    step_2 = (high_2 - low_2) / SIDE
    x_S, y_S = (
        each.ravel() for each in np.meshgrid(*(low_2 + (np.arange(SIDE)[:, None] + 0.5) * step_2).T)
    )
    rows, columns = bitmap.shape
    on_image_S = (x_S >= 0) & (x_S < columns) & (y_S >= 0) & (y_S < rows)
    truth_S = np.zeros(SIDE * SIDE, np.float32)
    truth_S[on_image_S] = bitmap[y_S[on_image_S].astype(int), x_S[on_image_S].astype(int)]
    truth_S = torch.from_numpy(truth_S)
    x_S, y_S = torch.from_numpy(x_S - center_2[0]), torch.from_numpy(y_S - center_2[1])
    distance_S, angle_S = torch.hypot(x_S, y_S), torch.atan2(y_S, x_S) % (2 * math.pi)
    log_R = ray_R.double().clamp(min=1e-2).log().requires_grad_()
    optimizer = torch.optim.Adam([log_R], lr=RATE)
    for _ in range(STEPS):
        found_S = inside(log_R.exp(), distance_S, angle_S, step_2.max() / 2)
        overlap = (found_S * truth_S).sum()
        loss = -(overlap / (found_S.sum() + truth_S.sum() - overlap)).log()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return log_R.detach().exp()


def refitted(found, image):
    """Return the instances of an image with rays fitted to the masks, and the IoU of each."""
    hw = (image.height, image.width)
    objects = [each for each in image.annotations if each.parts]
    truths = [masks.rle_from_segmentation(each.segmentation, hw) for each in objects]
    polygon_NR2 = []
    for annotation, truth, center_2, label_R in zip(
        objects, truths, found.centers, found.ray_lengths, strict=True
    ):
        bitmap = np.zeros(hw, np.uint8)
        crop, (x, y) = masks.crop_from_rle(truth)
        bitmap[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        corners = np.concatenate(annotation.parts)
        box = (*corners.min(axis=0), *corners.max(axis=0))
        fitted_R = fitted(torch.from_numpy(label_R), center_2, bitmap, box)
        drawn_R2 = decode_rays(torch.from_numpy(center_2)[None].double(), fitted_R[None])[0]
        polygon_NR2.append(drawn_R2.numpy().clip(0, (image.width, image.height)))
    found = replace(found, polygons=np.array(polygon_NR2, np.float32))
    pairs = zip(found.rle(), truths, strict=True)
    return found, [masks.rle_iou([drawn], [truth])[0, 0] for drawn, truth in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="COCO folder")
    parser.add_argument("--split", default="val")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_coco(options.data, options.split)
    labels, iou_of = draw_from_rays(data, RAYS, "largest")
    fitted_to_masks, fitted_ious = {}, []
    for image in progress_bar(data.images, desc="fitting", unit="image"):
        if image.id in labels:
            fitted_to_masks[image.id], ious = refitted(labels[image.id], image)
            fitted_ious += ious
    for name, found, ious in (
        ("farthest crossings", labels, list(iou_of.values())),
        ("fitted to masks", fitted_to_masks, fitted_ious),
    ):
        result = evaluate_predictions(data, found)
        print(
            f"{name}: mean IoU {np.mean(ious):.3f}, mask AP {result.mask_ap:.3f}, "
            f"AP50 {result.mask_ap50:.3f}, AP75 {result.mask_ap75:.3f}"
        )
    print(f"{len(fitted_ious)} objects, {RAYS} rays")


if __name__ == "__main__":
    main()
