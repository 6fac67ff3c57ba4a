from pathlib import Path

import numpy as np
import pytest
import torch

from polarmask.losses import (
    box_iou_loss,
    focal_loss,
    polar_centerness,
    polar_iou_loss,
    quality_loss,
    soft_polar_centerness,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "golden_losses.npz"
# 1e-5: the golden values are float32 sums in another order.
CLOSE = {"rel": 1e-5}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_mask_loss_and_its_gradient_equal_the_original(golden):
    pred = golden["ray_pred"].requires_grad_()
    weight = golden["centerness_target"]
    loss = (polar_iou_loss(pred, golden["ray_target"]) * weight).sum() / weight.sum()
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss_mask"].item(), **CLOSE)
    torch.testing.assert_close(pred.grad, golden["grad_ray_pred"], rtol=1e-4, atol=1e-8)


def test_centerness_target_equals_the_original(golden):
    torch.testing.assert_close(polar_centerness(golden["ray_target"]), golden["centerness_target"])


def test_centerness_loss_equals_the_original(golden):
    loss = quality_loss(golden["centerness_logit"], golden["centerness_target"]).mean()
    assert loss.item() == pytest.approx(golden["loss_centerness"].item(), **CLOSE)


def test_box_loss_equals_the_original_when_boxes_end_on_pixel_borders(golden):
    """The original counts both end pixels of a box; half a pixel more on each side is the same."""
    loss_P = box_iou_loss(golden["ltrb_pred"] + 0.5, golden["ltrb_target"] + 0.5)
    weight = golden["centerness_target"]
    loss = (loss_P * weight).sum() / weight.sum()
    assert loss.item() == pytest.approx(golden["loss_bbox"].item(), **CLOSE)


def test_class_loss_equals_the_original(golden):
    labels = golden["labels_1based"]
    target = torch.zeros_like(golden["cls_logits"])
    positive = labels > 0
    target[positive, labels[positive] - 1] = 1
    loss = focal_loss(golden["cls_logits"], target, alpha=0.25, gamma=2.0).sum()
    normaliser = positive.sum() + golden["num_imgs"]
    assert (loss / normaliser).item() == pytest.approx(golden["loss_cls"].item(), **CLOSE)


def test_soft_centerness_of_four_rays_is_that_of_fcos():
    right, down, left, up = 4.0, 2.0, 1.0, 8.0
    expected = ((min(left, right) / max(left, right)) * (min(up, down) / max(up, down))) ** 0.5
    rays = torch.tensor([[right, down, left, up]])
    assert soft_polar_centerness(rays).item() == pytest.approx(expected)


def test_one_short_ray_condemns_polar_centerness_but_not_the_soft_one():
    rays = torch.full((1, 36), 10.0)
    rays[0, 5] = 0.01
    assert polar_centerness(rays).item() < 0.05
    assert soft_polar_centerness(rays).item() > 0.9


def test_equal_rays_lose_nothing():
    rays = torch.rand(7, 36) + 0.1
    assert polar_iou_loss(rays, rays).tolist() == pytest.approx([0] * 7, abs=1e-6)
