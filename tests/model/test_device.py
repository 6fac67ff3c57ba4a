from copy import deepcopy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from polarmask.errors import ConfigError
from polarmask.system.device import (
    deterministic,
    find_device,
    half_precision,
    keep_depthwise_in_float32,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("amp", "device", "has_bf16", "expected"),
    [
        pytest.param("off", CUDA, True, None, id="off"),
        pytest.param("auto", CUDA, True, torch.bfloat16, id="auto-on-a-new-gpu"),
        pytest.param("auto", CUDA, False, torch.float16, id="auto-on-an-old-gpu"),
        pytest.param("fp16", CUDA, True, torch.float16, id="chosen-fp16"),
        pytest.param("bf16", CPU, False, torch.bfloat16, id="chosen-bf16-on-cpu"),
    ],
)
def test_precision_suits_the_device(monkeypatch, amp, device, has_bf16, expected):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    assert half_precision(amp, device) is expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        pytest.param({"avx2": True, "avx512_bf16": False}, None, id="avx2"),
        pytest.param({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16, id="avx512-bf16"),
        pytest.param({"amx_bf16": True}, torch.bfloat16, id="amx"),
        pytest.param({}, None, id="not-x86"),
    ],
)
def test_a_cpu_takes_bf16_by_itself_only_if_it_computes_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    assert half_precision("auto", CPU) is expected
    assert half_precision("off", CPU) is None


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(ConfigError, match=r"--set optim\.amp=fp16"):
        half_precision("bf16", CUDA)


def test_a_gpu_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert find_device(index=1) == torch.device("cuda", 1)
    assert find_device("cpu", index=1) == CPU
    with pytest.raises(ConfigError, match=r"device cuda:2 does not exist, .* finds 2 GPUs"):
        find_device("cuda", index=2)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert find_device() == CPU


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_depthwise_convolutions_stay_in_float32_and_keep_their_weights(kind):
    network = nn.Sequential(kind(8, 8, 3, groups=8), kind(8, 8, 3, groups=2), kind(1, 8, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    keep_depthwise_in_float32(network)
    copied = deepcopy(network)
    with torch.no_grad():
        copied[0].weight.zero_()
    image = torch.randn(1, 8, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network[0](image.bfloat16()).dtype == torch.float32
        assert network[1](image).dtype == network[2](image[:, :1]).dtype == torch.bfloat16
    assert not copied[0](image).sub(copied[0].bias[:, None, None]).any()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert isinstance(network[0], kind)


def test_the_deterministic_switch_is_turned_back_after_an_error():
    with pytest.raises(ValueError, match="inside"):
        raise_inside()
    assert not torch.are_deterministic_algorithms_enabled()


def raise_inside():
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise ValueError("inside")
