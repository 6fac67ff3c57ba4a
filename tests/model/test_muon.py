import copy

import pytest
import torch
from torch import nn

from polarmask.config.presets import tiny
from polarmask.config.settings import OptimConfig
from polarmask.errors import ConfigError
from polarmask.network.detector import PolarMask
from polarmask.training.muon import Muon, orthogonal
from polarmask.training.optim import make_optimizer

MUON = OptimConfig(optimizer="muon", lr=1e-2, weight_decay=0.1)


def plain_newton_schulz(matrix):
    """The iteration as published, on the shorter side."""
    x = matrix.double() if len(matrix) <= matrix.shape[1] else matrix.double().T
    x = x / x.norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if len(matrix) <= matrix.shape[1] else x.T


@pytest.mark.parametrize("shape", [(4, 4), (32, 288), (100, 7), (1, 5)])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e4])
def test_orthogonal_equals_the_published_iteration(shape, scale):
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        orthogonal(matrix).double(), plain_newton_schulz(matrix), atol=1e-4, rtol=1e-3
    )


def test_singular_values_become_one_whatever_they_were():
    left, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))
    matrix = left @ torch.diag(torch.logspace(0, -1.5, 16)) @ left.T
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_gradient_in_one_direction_or_none_stays_finite():
    one = torch.outer(torch.arange(1.0, 5), torch.ones(9))
    assert torch.linalg.svdvals(orthogonal(one))[0] == pytest.approx(1, abs=0.35)
    assert orthogonal(torch.zeros(4, 9)).equal(torch.zeros(4, 9))


def test_steps_equal_those_of_torch_on_matrices():
    # torch's Muon takes matrices only and iterates in bf16, so its directions differ by 1 %.
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 24, generator=generator)
    ours, theirs = (nn.Parameter(weight.clone()) for _ in range(2))
    own = Muon([{"params": [ours], "weight_decay": 0.1, "orthogonal": True}], lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(8, 24, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        own.step()
        reference.step()
    moved = (theirs - weight).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_the_layout_of_a_weight_does_not_matter():
    weight = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(weight.clone(memory_format=layout))
        parameter.grad = weight.square().clone(memory_format=layout)
        Muon([{"params": [parameter], "orthogonal": True}], lr=0.1).step()
        results.append(parameter.detach())
    torch.testing.assert_close(*results)


def test_the_rest_learns_as_with_adamw():
    detectors = [PolarMask(tiny().model)]
    detectors.append(copy.deepcopy(detectors[0]))
    optimizers = [
        make_optimizer(detectors[0], MUON),
        torch.optim.AdamW(detectors[1].parameters(), lr=1e-2, weight_decay=0),
    ]
    for detector, optimizer in zip(detectors, optimizers, strict=True):
        predictions = detector(torch.ones(1, 3, 32, 32))
        (predictions.class_BLC.sum() + predictions.ray_BLR.sum()).backward()
        optimizer.step()
    first, second = (dict(detector.named_parameters()) for detector in detectors)
    for name in ("head.ray.bias", "pyramid.resnet.bn1.weight", "head.ray_scale"):
        torch.testing.assert_close(first[name], second[name])


def test_muon_changes_the_weights_between_the_first_layer_and_the_outputs():
    detector = PolarMask(tiny().model)
    names = {id(p): name for name, p in detector.named_parameters()}
    hidden, others, vectors = (
        {names[id(p)] for p in group["params"]}
        for group in make_optimizer(detector, MUON).param_groups
    )
    assert others == {
        "pyramid.resnet.conv1.weight",
        "head.class_logit.weight",
        "head.quality_logit.weight",
        "head.ray.weight",
    }
    assert {"head.ray_tower.0.weight", "pyramid.resnet.layer1.0.conv1.weight"} <= hidden
    assert hidden | others | vectors == set(names.values())


def test_a_step_that_overflowed_changes_nothing():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([{"params": [weight], "orthogonal": True}], lr=0.1)
    weight.grad = torch.full((4, 4), torch.inf)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert weight.detach().equal(torch.ones(4, 4))


def test_a_restored_state_goes_on_as_the_one_that_was_saved():
    def moved(restart):
        parameters = [nn.Parameter(torch.ones(4, 6)), nn.Parameter(torch.ones(3))]
        groups = [{"params": parameters[:1], "orthogonal": True}, {"params": parameters[1:]}]
        optimizer = Muon(groups, lr=0.1)
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            if step == 2 and restart:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = Muon(groups, lr=0.1)
                optimizer.load_state_dict(state)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return parameters

    for first, second in zip(moved(False), moved(True), strict=True):
        assert first.equal(second)


def test_muon_has_groups_of_its_own():
    with pytest.raises(ConfigError, match="param_groups original is for sgd and adamw"):
        OptimConfig(optimizer="muon", param_groups="original")
