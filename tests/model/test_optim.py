import logging
from dataclasses import replace

import pytest
import torch

from polarmask.config.presets import preset, tiny
from polarmask.config.settings import ModelConfig, OptimConfig
from polarmask.network.detector import PolarMask
from polarmask.training.optim import learning_rate, make_optimizer, set_learning_rate

ORIGINAL = OptimConfig(param_groups="original")


def named_groups(model, config):
    """Return (names, settings) of each group."""
    optimizer = make_optimizer(model, config)
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ({name_of[id(parameter)] for parameter in group["params"]}, group)
        for group in optimizer.param_groups
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "dcn"])
def model(request):
    config = ModelConfig(channels=32, tower_depth=1, frozen_stages=1, dcn=request.param)
    return PolarMask(config)


def test_the_original_doubles_the_rate_of_biases_and_does_not_decay_them(model):
    (others, slow), (biases, fast) = named_groups(model, ORIGINAL)
    assert (slow["weight_decay"], fast["weight_decay"]) == (1e-4, 0)
    assert {"head.ray.bias", "pyramid.fpn.inner_blocks.0.0.bias"} <= biases
    assert {"head.ray.weight", "head.ray_scale", "head.class_tower.1.weight"} <= others
    assert all(name.endswith("bias") for name in biases)
    optimizer = make_optimizer(model, ORIGINAL)
    set_learning_rate(optimizer, 0.01)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]


def test_the_original_takes_norms_of_deformable_towers_for_plain_layers(model):
    (others, _), (biases, _) = named_groups(model, ORIGINAL)
    if model.config.dcn:
        assert {"head.class_tower.1.bias", "head.class_tower.0.offset.bias"} <= biases
        assert "pyramid.resnet.layer2.0.conv2.offset.bias" in biases
    else:
        assert "head.class_tower.1.bias" in others


@pytest.mark.parametrize("groups", ["matrices", "original"])
def test_every_parameter_that_learns_is_in_one_group(model, groups):
    (first, _), (second, _) = named_groups(model, OptimConfig(param_groups=groups))
    assert not first & second
    assert first | second == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("pyramid.resnet.layer1") for name in first | second)


def test_our_groups_share_one_rate():
    optimizer = make_optimizer(PolarMask(tiny().model), tiny().optim)
    set_learning_rate(optimizer, 0.002)
    assert {group["lr"] for group in optimizer.param_groups} == {0.002}


@pytest.mark.parametrize("batch_size", [2, 16, 64])
def test_the_rate_follows_the_batch_size(batch_size):
    config = replace(preset("coco-r50-1x").optim, batch_size=batch_size)
    assert learning_rate(config, 5000, 90_000) == pytest.approx(0.01 * batch_size / 16)


def test_a_scaled_rate_is_logged(caplog, box_model):
    caplog.set_level(logging.INFO)
    make_optimizer(PolarMask(box_model), OptimConfig(batch_size=8))
    assert "learning rate 0.005: 0.01 is for 16 images a step, this run takes 8" in caplog.text
    caplog.clear()
    make_optimizer(PolarMask(box_model), OptimConfig())
    assert not caplog.text


def test_published_warm_up_rises_from_a_third_of_a_hundredth_and_drops_by_epoch():
    config = preset("coco-r50-1x-32gpu").optim
    steps = 14 * 1000
    rates = [learning_rate(config, step, steps) for step in (0, 1000, 2000, 9999, 10_000, 13_000)]
    middle = (0.01 / 3 + 0.08) / 2
    assert rates == pytest.approx([0.01 / 3, middle, 0.08, 0.08, 0.008, 0.0008])


def test_warm_up_never_starts_above_the_peak():
    config = OptimConfig(warmup_lr=0.01 / 3, batch_size=1)
    assert learning_rate(config, 0, 90_000) == pytest.approx(0.01 / 16)


def test_frozen_stages_neither_learn_nor_gather_statistics():
    config = ModelConfig(channels=32, tower_depth=1, frozen_stages=1, backbone_norm="batch")
    resnet = PolarMask(config).train().pyramid.resnet
    assert not resnet["bn1"].training
    assert not any(module.training for module in resnet["layer1"].modules())
    assert resnet["layer2"][0].bn1.training
    assert not any(p.requires_grad for p in resnet["layer1"].parameters())
    assert all(p.requires_grad for p in resnet["layer2"].parameters())
    assert isinstance(resnet["conv1"].weight, torch.nn.Parameter)
