"""The original's own numbers, and ours in `original` mode."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polarmask.config import LabelConfig, ModelConfig
from polarmask.masks import bitmap_from_rle
from polarmask.original_rays import binned_rays, largest_contour, mass_center
from polarmask.targets import Assignment, all_locations, assign_original, level_points

GOLDEN = Path(__file__).parents[1] / "golden"
# The original's first ray points down and the next one turns to the right.
ORIGINAL_ORDER = (9 - np.arange(36)) % 36


def golden(name):
    with np.load(GOLDEN / f"golden_{name}.npz") as file:
        return {key: file[key] for key in file.files}


def bitmap(counts, hw):
    return bitmap_from_rle({"size": list(map(int, hw)), "counts": str(counts)}).astype(np.uint8)


@pytest.fixture(scope="module")
def rays():
    return golden("rays")


@pytest.fixture(scope="module")
def contours(rays):
    return [largest_contour(bitmap(rle, rays["canvas"])) for rle in rays["masks_rle"]]


def test_contours_and_mass_centres_equal_the_original(rays, contours):
    np.testing.assert_array_equal(np.concatenate(contours), rays["contour_xy"])
    np.testing.assert_array_equal([mass_center(c) for c in contours], rays["mass_center_xy"])


def test_rays_equal_the_original_to_the_last_bit(rays, contours):
    length_PR = binned_rays(
        torch.from_numpy(rays["query_xy"]),
        torch.from_numpy(rays["query_instance"]),
        [torch.from_numpy(contour) for contour in contours],
        36,
    )
    np.testing.assert_array_equal(length_PR[:, ORIGINAL_ORDER].numpy(), rays["rays_head"])


@pytest.fixture(scope="module", params=["case0", "case1"], ids=["plain", "mirrored"])
def case(request):
    prefix = f"{request.param}_"
    values = golden("targets")
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def assignment(case) -> Assignment:
    contours = [largest_contour(bitmap(rle, case["pad_hw"])) for rle in case["masks_rle"]]
    centers = np.array([mass_center(contour) for contour in contours])
    np.testing.assert_array_equal(centers, case["mass_centers_xy"])
    return assign_original(
        [torch.from_numpy(contour) for contour in contours],
        torch.from_numpy(centers).float(),
        torch.from_numpy(case["boxes"]),
        tuple(case["pad_hw"].tolist()),
        model=ModelConfig(),
        labels=LabelConfig(mode="original"),
    )


def flat(assignment, case):
    """Return positives counted over all locations, and the order that sorts them."""
    index_of = {
        tuple(location): index
        for index, location in enumerate(
            all_locations(tuple(case["pad_hw"].tolist()), ModelConfig().strides).tolist()
        )
    }
    index_P = np.array([index_of[tuple(p)] for p in assignment.location_P3.tolist()])
    order_P = index_P.argsort()
    return index_P[order_P], order_P


def test_positives_and_their_categories_equal_the_original(case, assignment):
    index_P, order_P = flat(assignment, case)
    np.testing.assert_array_equal(index_P, case["pos_inds"])
    point_P2 = level_points(assignment.location_P3, ModelConfig().strides)
    np.testing.assert_array_equal(point_P2.numpy()[order_P], case["pos_points"])
    label_L = np.zeros_like(case["labels"])
    label_L[index_P] = case["gt_labels"][assignment.object_P.numpy()[order_P]]
    np.testing.assert_array_equal(label_L, case["labels"])


def test_rays_and_boxes_of_positives_equal_the_original(case, assignment):
    _, order_P = flat(assignment, case)
    ray_PR = assignment.ray_PR[:, ORIGINAL_ORDER].numpy()[order_P]
    np.testing.assert_array_equal(ray_PR, case["pos_mask_targets"])
    point_P2 = level_points(assignment.location_P3, ModelConfig().strides).numpy()
    box_P4 = case["boxes"][assignment.object_P.numpy()]
    side_P4 = np.concatenate([point_P2 - box_P4[:, :2], box_P4[:, 2:] - point_P2], axis=1)
    np.testing.assert_array_equal(side_P4[order_P], case["pos_bbox_targets"])
