from pathlib import Path

import numpy as np
import pytest
import torch

from polarmask.config.settings import LossConfig
from polarmask.network.head import Predictions
from polarmask.network.losses import (
    Targets,
    loss_divisors,
    loss_sums,
    normalise_losses,
    polar_iou_loss,
    quadrant_quality,
)
from polarmask.original.losses import polar_centerness

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


def batch(*, logits, rays, ray_targets, sides, side_targets, quality, positive, category, images):
    """Lay locations out over images of one level."""
    locations = len(logits) // images
    predictions = Predictions(
        class_BLC=logits.reshape(images, locations, -1),
        quality_BL=quality.reshape(images, locations),
        ray_BLR=rays.reshape(images, locations, -1),
        box_BL4=sides.reshape(images, locations, 4),
        level_hws=((1, locations),),
    )
    where = positive.nonzero().flatten()
    targets = Targets(
        image_P=where // locations,
        location_P=where % locations,
        category_P=category[where],
        ray_PR=ray_targets,
        box_P4=side_targets,
        ignored_I2=torch.zeros(0, 2, dtype=torch.long),
    )
    return predictions, targets


def losses_of(predictions, targets, config):
    sums = loss_sums(predictions, targets, config)
    return normalise_losses(sums, loss_divisors(sums, config))


def test_a_step_in_original_mode_has_the_original_s_losses(golden):
    config = LossConfig(centerness="polar", normalizer="original")
    predictions, targets = batch(
        logits=torch.zeros(24, 80),
        rays=golden["ray_pred"].detach(),
        ray_targets=golden["ray_target"],
        sides=golden["ltrb_pred"],
        side_targets=golden["ltrb_target"],
        quality=golden["centerness_logit"],
        positive=torch.ones(24, dtype=torch.bool),
        category=torch.zeros(24, dtype=torch.long),
        images=1,
    )
    parts = losses_of(predictions, targets, config)
    assert parts["ray"].item() == pytest.approx(golden["loss_mask"].item(), **CLOSE)
    assert parts["box"].item() == pytest.approx(golden["loss_bbox"].item(), **CLOSE)
    assert parts["quality"].item() == pytest.approx(golden["loss_centerness"].item(), **CLOSE)


def test_the_class_loss_in_original_mode_is_divided_by_positives_and_images(golden):
    labels = golden["labels_1based"]
    positive = labels > 0
    some = torch.ones(int(positive.sum()), 36)
    config = LossConfig(centerness="polar", normalizer="original")
    predictions, targets = batch(
        logits=golden["cls_logits"],
        rays=torch.ones(200, 36),
        ray_targets=some,
        sides=torch.ones(200, 4),
        side_targets=some[:, :4],
        quality=torch.zeros(200),
        positive=positive,
        category=labels.clamp(min=1) - 1,
        images=int(golden["num_imgs"]),
    )
    parts = losses_of(predictions, targets, config)
    assert parts["class"].item() == pytest.approx(golden["loss_cls"].item(), **CLOSE)


def test_soft_centerness_of_four_rays_is_that_of_fcos():
    right, down, left, up = 4.0, 2.0, 1.0, 8.0
    expected = ((min(left, right) / max(left, right)) * (min(up, down) / max(up, down))) ** 0.5
    rays = torch.tensor([[right, down, left, up]])
    assert quadrant_quality(rays).item() == pytest.approx(expected)


def test_one_short_ray_condemns_polar_centerness_but_not_the_soft_one():
    rays = torch.full((1, 36), 10.0)
    rays[0, 5] = 0.01
    assert polar_centerness(rays).item() < 0.05
    assert quadrant_quality(rays).item() > 0.9


def test_equal_rays_lose_nothing():
    rays = torch.rand(7, 36) + 0.1
    assert polar_iou_loss(rays, rays).tolist() == pytest.approx([0] * 7, abs=1e-6)
