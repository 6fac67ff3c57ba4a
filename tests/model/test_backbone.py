"""Styles, deformable convolutions, and where weights come from."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import conv2d

from polarmask.config.settings import ModelConfig
from polarmask.errors import ConfigError
from polarmask.network import backbone_weights
from polarmask.network.backbone import Pyramid
from polarmask.network.backbone_weights import load_backbone_weights
from polarmask.network.deform import DeformConv2d

SMALL = ModelConfig(channels=32, tower_depth=1)


@pytest.mark.parametrize(
    ("style", "strides"), [("pytorch", [(1, 1), (2, 2)]), ("caffe", [(2, 2), (1, 1)])]
)
def test_a_style_halves_the_map_in_its_own_convolution(style, strides):
    resnet = Pyramid(replace(SMALL, backbone_style=style)).resnet
    for stage in ("layer2", "layer3", "layer4"):
        assert [resnet[stage][0].conv1.stride, resnet[stage][0].conv2.stride] == strides
        assert resnet[stage][1].conv1.stride == resnet[stage][1].conv2.stride == (1, 1)
    assert resnet["layer1"][0].conv1.stride == resnet["layer1"][0].conv2.stride == (1, 1)


def test_every_bottleneck_of_layers_2_to_4_is_deformable_and_no_other():
    resnet = Pyramid(replace(SMALL, dcn=True, backbone="resnext101_64x4d")).resnet
    deformable = {n for n, m in resnet.named_modules() if isinstance(m, DeformConv2d)}
    depths = {"layer2": 4, "layer3": 23, "layer4": 3}
    assert deformable == {f"{s}.{i}.conv2" for s, depth in depths.items() for i in range(depth)}
    assert resnet["layer2"][0].conv2.weight.shape == (512, 8, 3, 3)  # 64 groups kept
    assert resnet["layer2"][0].conv2.stride == 2


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_untrained_deformable_layer_is_an_ordinary_convolution(groups, stride):
    torch.manual_seed(0)
    feature = torch.randn(2, 8, 9, 12)
    plain = DeformConv2d(8, 16, stride=stride, groups=groups)
    expected = conv2d(feature, plain.weight, stride=stride, padding=1, groups=groups)
    torch.testing.assert_close(plain(feature), expected)
    modulated = DeformConv2d(8, 16, stride=stride, groups=groups, modulated=True)
    expected = conv2d(feature, modulated.weight, stride=stride, padding=1, groups=groups) / 2
    torch.testing.assert_close(modulated(feature), expected)


@pytest.mark.parametrize("modulated", [False, True])
def test_a_deformable_layer_learns_in_autocast(modulated):
    torch.manual_seed(0)
    layer = DeformConv2d(8, 16, bias=True, modulated=modulated)
    torch.nn.init.normal_(layer.offset.weight, std=0.05)
    feature = torch.randn(2, 8, 9, 12, requires_grad=True)
    wanted = layer(feature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(feature.to(torch.bfloat16))  # as the layer before hands it on
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)
    found.float().square().sum().backward()
    assert all(each.grad.abs().max() > 0 for each in (feature, *layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_deformable_layer_computes_in_half_precision(dtype):
    torch.manual_seed(0)
    layer = DeformConv2d(8, 16, modulated=True)
    feature = torch.randn(2, 8, 9, 12)
    found = layer.to(dtype)(feature.to(dtype))
    assert found.dtype is dtype
    wanted = layer.float()(feature)
    torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.02)


def test_offsets_are_y_then_x_per_tap():
    layer = DeformConv2d(1, 1)
    torch.nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0, 1, 1] = 1
    layer.offset.bias.data[8] = 1  # tap 4 is the middle one; its y
    feature = torch.arange(20.0).reshape(1, 1, 4, 5)
    assert torch.equal(layer(feature)[0, 0, :3], feature[0, 0, 1:])


def test_weights_of_a_whole_detector_are_read_by_their_prefix(tmp_path):
    source, target = Pyramid(SMALL), Pyramid(replace(SMALL, dcn=True))
    state = {f"module.backbone.{k}": v for k, v in source.resnet.state_dict().items()}
    state["module.backbone.layer2.0.conv2_offset.bias"] = torch.ones(18)
    torch.save({"state_dict": {**state, "module.neck.x": torch.zeros(1)}}, tmp_path / "whole.pth")
    load_backbone_weights(target, (tmp_path / "whole.pth").as_uri())
    assert torch.equal(target.resnet["conv1"].weight, source.resnet["conv1"].weight)
    block = target.resnet["layer2"][0]
    assert torch.equal(block.conv2.weight, source.resnet["layer2"][0].conv2.weight)
    assert block.conv2.offset.bias.sum() == 18
    assert not target.resnet["layer2"][1].conv2.offset.bias.any()


@pytest.mark.parametrize(
    ("weights_of", "loaded_into", "message"),
    [
        ({"backbone_norm": "batch"}, {"backbone_norm": "group"}, r"no place.*backbone_norm=frozen"),
        ({"backbone_norm": "group"}, {"backbone_norm": "batch"}, r"lacks.*backbone_norm=frozen"),
        ({"dcn": True}, {}, r"no place.* 26 parameters.*model\.dcn=true"),
        ({"backbone": "resnet101"}, {}, r"no place.*first layer3\.6\.conv1.*backbone=NAME"),
        ({"backbone": "resnet18"}, {}, r"lacks.*backbone=NAME"),
    ],
    ids=["statistics", "no-statistics", "offsets", "deeper", "shallower"],
)
def test_weights_of_another_backbone_are_refused_with_the_setting_to_use(
    tmp_path, weights_of, loaded_into, message
):
    path = tmp_path / "weights.pth"
    torch.save(Pyramid(replace(SMALL, **weights_of)).resnet.state_dict(), path)
    with pytest.raises(ConfigError, match=message) as refused:
        load_backbone_weights(Pyramid(replace(SMALL, **loaded_into)), str(path))
    assert "\n" not in str(refused.value)


def test_classifiers_and_stages_behind_the_last_level_are_left_out(tmp_path):
    whole = Pyramid(SMALL).resnet.state_dict() | {"fc.weight": torch.zeros(1000, 2048)}
    torch.save(whole, tmp_path / "whole.pth")
    small = Pyramid(replace(SMALL, strides=(8, 16)))
    load_backbone_weights(small, str(tmp_path / "whole.pth"))
    assert torch.equal(small.resnet["conv1"].weight, whole["conv1.weight"])
    torch.save(whole | {"conv1.weight": whole["conv1.weight"][:, :1]}, tmp_path / "grey.pth")
    with pytest.raises(ConfigError, match=r"differs in shape .* 1 parameters, first conv1\.weight"):
        load_backbone_weights(small, str(tmp_path / "grey.pth"))


def test_a_url_is_fetched_once_and_kept(tmp_path, monkeypatch):
    """A file: address stands for the network; torch's own fetching runs."""
    source = Pyramid(SMALL)
    (tmp_path / "far").mkdir()
    torch.save(source.resnet.state_dict(), tmp_path / "far" / "r50.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    url = (tmp_path / "far" / "r50.pth").as_uri()
    kept = backbone_weights.download(url)
    (tmp_path / "far" / "r50.pth").unlink()
    assert backbone_weights.download(url) == kept
    assert torch.equal(
        backbone_weights.read_state_dict(kept)["conv1.weight"], source.resnet["conv1"].weight
    )


def test_files_of_one_name_at_two_addresses_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.mar").write_text(place)
    urls = [(tmp_path / place / "model.mar").as_uri() for place in ("a", "b")]
    kept = [backbone_weights.download(url) for url in urls]
    assert [path.read_text() for path in kept] == ["a", "b"]
    assert {path.suffix for path in kept} == {".mar"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "https://localhost:1/r50-788b5fa3.pth",
            r"curl -L -o r50-788b5fa3\.pth https://localhost:1",
        ),
        ("s3://bucket/r50.pth", r"aws s3 cp s3://bucket/r50\.pth r50\.pth"),
        ("resnet-fifty", r"neither a file, a URL nor a torchvision weights name"),
    ],
)
def test_weights_that_can_not_be_had_say_what_to_type(source, message, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        load_backbone_weights(Pyramid(SMALL), source)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    (tmp_path / "page.pth").write_text("<html>moved</html>")
    with pytest.raises(ConfigError, match=r"page\.pth can't be read as plain tensors"):
        load_backbone_weights(Pyramid(SMALL), str(tmp_path / "page.pth"))


@pytest.mark.parametrize("setting", [{"backbone_style": "caffe"}, {"dcn": True}])
def test_resnet18_has_no_caffe_style_and_no_dcn(setting):
    with pytest.raises(ConfigError, match="use resnet50 or larger"):
        ModelConfig(backbone="resnet18", **setting)
