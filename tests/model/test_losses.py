from pathlib import Path

import numpy as np
import pytest
import torch

from polarmask.config.settings import LossConfig
from polarmask.geometry import masks
from polarmask.geometry.rays import decode_rays
from polarmask.network.head import Predictions
from polarmask.network.losses import (
    Targets,
    loss_divisors,
    loss_sums,
    normalise_losses,
    polar_iou,
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
    loss = (-polar_iou(pred, golden["ray_target"]).log() * weight).sum() / weight.sum()
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


@pytest.mark.parametrize("overlap", ["rays", "area"])
def test_equal_rays_overlap_whole(overlap):
    rays = torch.rand(7, 36) + 0.1
    assert polar_iou(rays, rays, overlap).tolist() == pytest.approx([1] * 7)


def test_the_overlap_of_areas_is_the_iou_of_the_masks():
    # Smooth star shapes, so large that pixels do not count.
    angle_R = torch.arange(36) * (2 * torch.pi / 36)
    generator = torch.Generator().manual_seed(0)
    size_P, depth_P, turn_P = torch.rand(3, 12, 1, generator=generator)
    ray_PR = (200 + 200 * size_P) * (1 + 0.3 * depth_P * torch.sin(2 * angle_R + 6 * turn_P))
    first_PR, second_PR = ray_PR[:6], ray_PR[6:]
    center_P2 = torch.full((6, 2), 600.0)
    first, second = (
        masks.rles_from_polygons(decode_rays(center_P2, each).double().numpy(), (1200, 1200))
        for each in (first_PR, second_PR)
    )
    expected = [masks.rle_iou([a], [b])[0, 0] for a, b in zip(first, second, strict=True)]
    assert polar_iou(first_PR, second_PR, "area").tolist() == pytest.approx(expected, abs=0.005)
    lengths = polar_iou(first_PR, second_PR)
    assert max(abs(lengths - torch.tensor(expected))) > 0.1


@pytest.mark.parametrize("overlap", ["rays", "area"])
def test_the_gradient_of_the_overlap_equals_finite_differences(overlap):
    generator = torch.Generator().manual_seed(0)
    pred_PR, target_PR = 1 + 9 * torch.rand(2, 5, 36, generator=generator, dtype=torch.float64)
    torch.autograd.gradcheck(
        lambda rays: -polar_iou(rays, target_PR, overlap).log(), pred_PR.requires_grad_()
    )
