"""The original's own numbers, and ours in `original` mode."""

from pathlib import Path

import numpy as np
import pytest
import torch

from polarmask.config.settings import LabelConfig, ModelConfig, PostprocessConfig
from polarmask.geometry.locations import Assignment, all_locations, level_points
from polarmask.geometry.masks import bitmap_from_rle, rles_from_whole_pixels
from polarmask.network.head import Predictions
from polarmask.network.postprocess import postprocess
from polarmask.original.labels import assign_original
from polarmask.original.rays import binned_rays, largest_contour, mass_center

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


def assert_equal_roots(ours, golden):
    """Assert equality but for the last bit: what float32 root torch takes depends on the CPU."""
    np.testing.assert_array_max_ulp(ours, golden, maxulp=1)


def test_rays_equal_the_original(rays, contours):
    length_PR = binned_rays(
        torch.from_numpy(rays["query_xy"]),
        torch.from_numpy(rays["query_instance"]),
        [torch.from_numpy(contour) for contour in contours],
        36,
    )
    assert_equal_roots(length_PR[:, ORIGINAL_ORDER].numpy(), rays["rays_head"])


def test_lengths_of_rays_are_rounded_the_same_on_every_cpu():
    """To the nearest float32, as IEEE 754 demands of a root."""
    offset_V2 = np.stack(np.meshgrid(np.arange(1, 60), np.arange(1, 60)), axis=-1).reshape(-1, 2)
    length_PR = binned_rays(
        torch.zeros(len(offset_V2), 2),
        torch.arange(len(offset_V2)),
        list(torch.from_numpy(offset_V2[:, None])),
        360,
    )
    expected_V = np.hypot(*offset_V2.T.astype(float)).astype(np.float32)
    np.testing.assert_array_equal(length_PR.amax(dim=1).numpy(), expected_V)


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
    assert_equal_roots(ray_PR, case["pos_mask_targets"])
    point_P2 = level_points(assignment.location_P3, ModelConfig().strides).numpy()
    box_P4 = case["boxes"][assignment.object_P.numpy()]
    side_P4 = np.concatenate([point_P2 - box_P4[:, :2], box_P4[:, 2:] - point_P2], axis=1)
    np.testing.assert_array_equal(side_P4[order_P], case["pos_bbox_targets"])


@pytest.fixture(scope="module")
def decoded():
    """The golden detections and ours, by class and falling score.

    The golden file keeps of the network's output what can matter: every location's largest class
    logit, all logits above the threshold, and rays and boxes where there is one.
    """
    values = golden("decode")
    predictions = stored_predictions(values)
    config = PostprocessConfig(score="original")
    strides = ModelConfig().strides
    input_hw, given_hw = (tuple(values[key].tolist()) for key in ("input_hw", "ori_hw"))
    [found] = postprocess(
        predictions, [input_hw], strides=strides, config=config, given_hws=[given_hw]
    )
    order_N = np.lexsort([-found.score_N, found.category_N])
    scale_2 = np.array([input_hw[1] / given_hw[1], input_hw[0] / given_hw[0]], dtype=np.float32)
    order_G = np.lexsort([-values["det_bboxes"][:, 4], values["det_labels"]])
    for key in ("det_labels", "det_bboxes", "det_polygons", "rle_by_class", "rle_class"):
        values[key] = values[key][order_G]
    return values, {key: value.numpy()[order_N] for key, value in vars(found).items()}, scale_2


def stored_predictions(values):
    classes, rays, boxes, hws = [], [], [], []
    for level in range(5):
        stored = {k.removesuffix(f"_l{level}"): v for k, v in values.items() if k[-1] == str(level)}
        hws.append(tuple(stored["hw"].tolist()))
        count = hws[-1][0] * hws[-1][1]
        logit_LC = torch.full((count, 80), -20.0)
        pairs = stored["class_location"].astype(int), stored["class_category"].astype(int)
        logit_LC[pairs] = torch.from_numpy(stored["class_logit"]).float()
        classes.append(logit_LC)
        for name, size, into in (("ray", 36, rays), ("box", 4, boxes)):
            value = torch.ones(count, size)
            value[stored["location"].astype(int)] = torch.from_numpy(stored[name]).float()
            into.append(value)
    quality = np.concatenate([values[f"quality_logit_l{level}"] for level in range(5)])
    ray_LR = torch.cat(rays)
    ours_LR = torch.empty_like(ray_LR)
    ours_LR[:, ORIGINAL_ORDER] = ray_LR
    return Predictions(
        class_BLC=torch.cat(classes)[None],
        quality_BL=torch.from_numpy(quality).float()[None],
        ray_BLR=ours_LR[None],
        box_BL4=torch.cat(boxes)[None],
        level_hws=tuple(hws),
    )


def test_detections_equal_the_original(decoded):
    values, found, scale_2 = decoded
    np.testing.assert_array_equal(found["category_N"], values["det_labels"])
    np.testing.assert_allclose(found["score_N"] * 1.5, values["det_bboxes"][:, 4], rtol=1e-5)
    box_N4 = found["box_N4"] / np.tile(scale_2, 2)
    # 1e-3 px: float32 has about 7 digits and coordinates reach 640.
    np.testing.assert_allclose(box_N4, values["det_bboxes"][:, :4], atol=1e-3)
    polygon_NR2 = (found["polygon_NR2"] / scale_2)[:, ORIGINAL_ORDER]
    np.testing.assert_allclose(polygon_NR2, values["det_polygons"].transpose(0, 2, 1), atol=1e-3)


def test_masks_equal_the_original_to_the_last_pixel(decoded):
    values, found, scale_2 = decoded
    given_hw = tuple(values["ori_hw"].tolist())
    polygons = (found["polygon_NR2"] / scale_2)[:, ORIGINAL_ORDER]
    counts = [rle["counts"] for rle in rles_from_whole_pixels(polygons, given_hw)]
    assert counts == values["rle_by_class"].tolist()
    np.testing.assert_array_equal(found["category_N"], values["rle_class"])
