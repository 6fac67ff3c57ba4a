"""Backbones of timm: built, trained, resumed, exported and served like those of torchvision."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from torch import nn

from polarmask.cli import main
from polarmask.config.backbones import TORCHVISION, check_backbone
from polarmask.config.presets import preset, tiny
from polarmask.config.settings import ModelConfig
from polarmask.data.coco import Category
from polarmask.data.images import read_image
from polarmask.engines.export import export_program
from polarmask.engines.fold import fold_batch_norm
from polarmask.engines.interface import ENGINES, INT8_FILE, PROGRAM_FILE
from polarmask.engines.machine import has_bf16
from polarmask.engines.quantize import calibrate, quantize_program
from polarmask.errors import ConfigError
from polarmask.inference.model_folder import ModelCard, load_model, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.backbone import Pyramid
from polarmask.network.backbone_weights import load_backbone_weights
from polarmask.network.detector import PolarMask
from polarmask.training.checkpoint import load_checkpoint
from polarmask.training.train import TrainOptions, train

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "coco_photos" / "images").glob("*.jpg"))
MOBILE, CONVNEXT = "timm/mobilenetv4_conv_small_050", "timm/convnext_atto"
FOUR_STRIDES = (8, 16, 32, 64)
SMALL = ModelConfig(
    backbone=MOBILE, backbone_norm="batch", channels=32, tower_depth=1, strides=FOUR_STRIDES
)


def as_trained(make, config):
    """Return a network whose norms have statistics and scales that leave folding work to do."""
    source = make(replace(config, backbone_norm="batch")).train()
    for norm in source.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        source(torch.rand(4, 3, 128, 128))
    network = make(config)
    network.load_state_dict(source.state_dict(), strict=False)  # other norms, no statistics
    return network.eval()


# Names and strides


def test_names_of_settings_are_checked_by_their_form():
    for name in (*TORCHVISION, MOBILE, "timm/a_model_of_next_year"):
        check_backbone(name)
    with pytest.raises(ConfigError, match=r"mean resnet50.*resnet18, .* timm as timm/NAME"):
        ModelConfig(backbone="resnet5")
    for name in ("timm/resnet18.a1_in1k", "timm/hf-hub:them/theirs", "timm/", "timm/../x"):
        with pytest.raises(ConfigError, match=r"small letters, digits and _ only"):
            ModelConfig(backbone=name)


def test_the_form_of_names_fits_all_of_timm_s():
    for name in timm.list_models():
        check_backbone(f"timm/{name}")


@pytest.mark.parametrize("setting", [{"backbone_style": "caffe"}, {"dcn": True}])
def test_there_is_no_caffe_style_and_no_dcn(setting):
    with pytest.raises(ConfigError, match="use resnet50 or larger"):
        ModelConfig(backbone=MOBILE, **setting)


@pytest.mark.parametrize(
    ("backbone", "strides", "message"),
    [
        ("mobilenetv4_conv_smal", (8, 16), r"no model .* \(did you mean mobilenetv4_conv_small\?"),
        ("convnext_atto", (2, 4, 8), r"has strides 4, 8, 16, 32; .* needs 2:"),
        ("vit_tiny_patch16_224", (8, 16), r"has strides 16; .* needs 8:"),
        ("vit_tiny_patch16_224", (16, 32), r"no pyramid .*\(Input height .* doesn't match"),
        ("mixer_s16_224", (16,), r"no pyramid for images of any size"),
    ],
)
def test_a_backbone_that_can_not_be_had_is_refused_with_a_reason(backbone, strides, message):
    config = replace(SMALL, backbone=f"timm/{backbone}", strides=strides)
    with pytest.raises(ConfigError, match=message) as refused:
        Pyramid(config)
    assert "\n" not in str(refused.value)


def test_training_refuses_it_before_it_makes_labels(drawn_data, small_config, tmp_path):
    config = replace(small_config, model=replace(small_config.model, backbone="timm/resnet19"))
    with pytest.raises(ConfigError, match=r"no model resnet19"):
        train(config, TrainOptions(data=drawn_data, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_without_timm_a_model_of_it_says_what_to_install(tmp_path, monkeypatch):
    config = replace(tiny(), model=replace(SMALL, num_classes=1, strides=(4, 8, 16)))
    save_model(tmp_path / "m", PolarMask(config.model), ModelCard(config, (Category(1, "a"),)))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install \"polarmask-k8s\[timm\]\""):
        load_model(tmp_path / "m")


def test_settings_and_other_backbones_load_no_timm():
    code = """
import sys
from polarmask.config.settings import ModelConfig
ModelConfig(backbone="timm/convnext_atto")
assert "torch" not in sys.modules
from polarmask.engines.fold import fold_batch_norm
from polarmask.network.detector import PolarMask
fold_batch_norm(PolarMask(ModelConfig(backbone="resnet18", channels=32)))
assert "timm" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The network


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [(MOBILE, (2, 4, 8, 16, 32, 64)), (CONVNEXT, (4, 8, 16)), (MOBILE, (16,))],
)
def test_levels_have_the_strides_that_are_asked_for(backbone, strides):
    pyramid = Pyramid(replace(SMALL, backbone=backbone, strides=strides)).eval()
    levels = pyramid(torch.rand(1, 3, 128, 192))
    assert [tuple(each.shape) for each in levels] == [(1, 32, 128 // s, 192 // s) for s in strides]


def test_equal_seeds_give_equal_weights_the_first_time_and_later():
    code = """
import torch
from polarmask.config.settings import ModelConfig
from polarmask.network.backbone import Pyramid
for _ in range(2):
    torch.manual_seed(3)
    pyramid = Pyramid(ModelConfig(backbone="timm/mobilenetv4_conv_small_050", channels=32))
    print(sum(each.double().abs().sum().item() for each in pyramid.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = done.stdout.split()
    assert first == second


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_norms_are_replaced_and_keep_their_activations(norm):
    whole = Pyramid(SMALL).resnet
    other = Pyramid(replace(SMALL, backbone_norm=norm)).resnet
    kinds = {type(module).__name__ for module in other.modules()}
    assert not [kind for kind in kinds if kind.startswith("BatchNorm")]
    activations = [
        [name for name, module in each.named_modules() if isinstance(module, nn.ReLU)]
        for each in (whole, other)
    ]
    assert activations[0] == activations[1]
    assert len(activations[0]) > 10


def test_frozen_batch_norm_is_batch_norm_in_evaluation():
    whole = as_trained(Pyramid, SMALL).double()
    frozen = Pyramid(replace(SMALL, backbone_norm="frozen_batch")).double().eval()
    frozen.load_state_dict(whole.state_dict(), strict=False)
    image = torch.rand(1, 3, 128, 128, dtype=torch.float64)
    for wanted, found in zip(whole(image), frozen(image), strict=True):
        assert wanted.std() > 0.01
        torch.testing.assert_close(found, wanted)


def test_group_norm_takes_the_place_of_batch_norm_and_is_followed_by_its_activation():
    """The first layers against plain functions of torch."""
    config = replace(SMALL, backbone="timm/regnety_002", backbone_norm="group")
    stem = as_trained(Pyramid, config).resnet.net.stem
    image = torch.rand(1, 3, 64, 64)
    values = nn.functional.conv2d(image, stem.conv.weight, stride=2, padding=1)
    wanted = nn.functional.group_norm(values, 32, stem.bn.weight, stem.bn.bias).relu()
    assert torch.equal(stem(image), wanted)


def test_layer_norm_stays_whatever_the_setting():
    names = [
        {
            type(m).__name__
            for m in Pyramid(replace(SMALL, backbone=CONVNEXT, backbone_norm=n)).resnet.modules()
        }
        for n in ("batch", "frozen_batch", "group")
    ]
    assert names[0] == names[1] == names[2]
    assert "LayerNorm2d" in names[0]


@pytest.mark.parametrize(
    ("backbone", "stages", "learns", "not_learned"),
    [
        (MOBILE, 1, ("blocks.1", "blocks.2"), ("conv_stem", "bn1", "blocks.0")),
        (MOBILE, 4, (), ("conv_stem", "blocks.0", "blocks.1", "blocks.2", "blocks.4")),
        (CONVNEXT, 2, ("stages_2", "stages_3"), ("stem_0", "stages_0", "stages_1")),
    ],
)
def test_frozen_stages_neither_learn_nor_move_their_statistics(
    backbone, stages, learns, not_learned
):
    pyramid = Pyramid(replace(SMALL, backbone=backbone, frozen_stages=stages)).train()
    before = {name: value.clone() for name, value in pyramid.resnet.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in pyramid.parameters() if p.requires_grad], lr=0.1)
    sum(level.square().mean() for level in pyramid(torch.rand(2, 3, 128, 128))).backward()
    optimizer.step()
    after = pyramid.resnet.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if name.startswith(not_learned)]
    assert all(any(name.startswith(part) for name in changed) for part in learns)


def test_every_parameter_that_learns_has_a_gradient():
    """Several processes wait for all of them; what is behind the last level is cut off."""
    pyramid = Pyramid(replace(SMALL, strides=(8, 16))).train()
    sum(level.mean() for level in pyramid(torch.rand(2, 3, 128, 128))).backward()
    assert all(each.requires_grad and each.grad is not None for each in pyramid.parameters())
    whole = timm.create_model(SMALL.backbone.removeprefix("timm/"), features_only=True)
    kept = [sum(each.numel() for each in net.parameters()) for net in (pyramid.resnet, whole)]
    assert kept[0] < kept[1] / 2


def test_what_can_not_be_cut_off_does_not_learn():
    """HRNet computes its stages side by side."""
    pyramid = Pyramid(replace(SMALL, backbone="timm/hrnet_w18_small", strides=(4, 8))).train()
    sum(level.mean() for level in pyramid(torch.rand(2, 3, 64, 64))).backward()
    learned = [parameter for parameter in pyramid.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learned)
    assert len(learned) < len(list(pyramid.parameters()))


@pytest.mark.parametrize("backbone", [MOBILE, "timm/dla34"])
def test_what_is_cut_off_behind_the_last_level_changes_no_level(backbone):
    """dla34 ends its sequences with activations, which have no parameters and stay."""
    net = Pyramid(replace(SMALL, backbone=backbone, strides=(4, 8))).eval().resnet
    whole = timm.create_model(backbone.removeprefix("timm/"), features_only=True).eval()
    whole.load_state_dict(net.net.state_dict(), strict=False)
    image = torch.rand(1, 3, 64, 96)
    of_stride = {str(64 // each.shape[2]): each for each in whole(image)}
    for stride, level in net(image).items():
        assert torch.equal(level, of_stride[stride])


# Weights


@pytest.mark.parametrize(
    ("backbone", "prefix", "strides"),
    [
        (MOBILE, "", (8, 16, 32)),
        (MOBILE, "module.backbone.", (8, 16)),
        (CONVNEXT, "", (8, 16)),
        (CONVNEXT, "module.backbone.", (8, 16, 32)),
    ],
)
def test_weights_of_the_whole_model_are_read_under_timm_s_names(
    backbone, prefix, strides, tmp_path
):
    source = as_trained(lambda _: timm.create_model(backbone.removeprefix("timm/")), SMALL)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    config = replace(SMALL, backbone=backbone, backbone_norm="frozen_batch", strides=strides)
    pyramid = Pyramid(config).eval()
    load_backbone_weights(pyramid, str(tmp_path / "weights.pth"))
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    wanted = source.double().forward_intermediates(image, intermediates_only=True)
    levels = {str(64 // each.shape[2]): each for each in wanted}
    found = pyramid.double().resnet(image)
    assert list(found) == [str(stride) for stride in strides]
    for stride, level in found.items():
        assert levels[stride].std() > 0.01
        torch.testing.assert_close(level, levels[stride])


def test_the_command_line_takes_weights_and_the_norm_that_needs_them(drawn_data, tmp_path):
    lite = "tf_efficientnet_lite0"
    state = timm.create_model(lite).state_dict()
    statistics = "bn1.running_var"  # not learned: frozen ones stay what the file says
    state[statistics].uniform_(0.5, 2)
    torch.save(state, tmp_path / "weights.pth")
    settings = (f"model.backbone=timm/{lite}", "model.backbone_norm=frozen_batch", "epochs=0.25")
    flags = [flag for setting in settings for flag in ("--set", setting)]
    where = ["--data", str(drawn_data), "--out", str(tmp_path / "run")]
    weights = ["--backbone-weights", str(tmp_path / "weights.pth")]
    assert main(["train", "--preset", "tiny", *where, *flags, *weights]) == 0
    detector, card = load_model(tmp_path / "run" / "model")
    assert card.config.backbone_weights == weights[1]
    assert torch.equal(detector.pyramid.resnet.net.state_dict()[statistics], state[statistics])


@pytest.mark.parametrize(
    ("weights_of", "into", "message"),
    [
        ({}, {"backbone_norm": "group"}, r"no place.*backbone_norm=frozen"),
        ({"backbone_norm": "group"}, {}, r"lacks.*backbone_norm=frozen"),
        ({"backbone": "timm/mobilenetv4_conv_small"}, {}, r"differs in shape.*timm's"),
        ({"backbone": "timm/resnet10t"}, {}, r"lacks.*backbone=NAME"),
    ],
)
def test_weights_of_another_backbone_are_refused(weights_of, into, message, tmp_path):
    torch.save(Pyramid(replace(SMALL, **weights_of)).resnet.net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ConfigError, match=message):
        load_backbone_weights(Pyramid(replace(SMALL, **into)), str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("source", "name"),
    [("timm", "mobilenetv4_conv_small_050"), ("timm/resnet18.a1_in1k", "resnet18.a1_in1k")],
)
def test_without_network_the_error_says_how_to_bring_the_weights(
    source, name, tmp_path, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"create_model\('{name}', pretrained=True\)") as refused:
        load_backbone_weights(Pyramid(SMALL), source)
    assert "\n" not in str(refused.value)


def test_weights_of_timm_are_for_backbones_of_timm():
    with pytest.raises(ConfigError, match=r"not of timm; --set model\.backbone=timm/NAME"):
        load_backbone_weights(Pyramid(replace(SMALL, backbone="resnet18")), "timm")


# Training and engines


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [(MOBILE, (2, 4, 8)), (CONVNEXT, (4, 8, 16))],
    ids=["mobile", "convnext"],
)
def test_a_resumed_training_is_one_that_was_not_interrupted(
    backbone, strides, drawn_data, small_config, tmp_path
):
    config = replace(
        small_config,
        model=replace(small_config.model, backbone=backbone, strides=strides),
        optim=replace(small_config.optim, epochs=2),
    )
    whole, parts = (
        TrainOptions(data=drawn_data, out=tmp_path / name) for name in ("whole", "parts")
    )
    train(config, whole)
    train(config, replace(parts, stop_after=2))
    train(config, parts)
    states = [load_checkpoint(each.out / "checkpoint.pt") for each in (whole, parts)]
    assert states[0].step == states[1].step == 4
    for name, value in states[0].detector.items():
        assert torch.equal(states[1].detector[name], value), name
    assert Predictor.load(parts.out / "model").card.config.model.backbone == backbone


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
@pytest.mark.parametrize(
    ("name", "num_left"),
    [
        ("mobilenetv4_conv_small_050", 0),
        ("tf_efficientnet_lite0", 0),  # convolutions that pad as TensorFlow does
        ("resnetv2_18", None),  # the norm before the convolution
        ("densenet121", None),  # a norm after each concatenation
        ("repvit_m0_9", None),  # sums before norms
        ("nf_regnet_b0", 0),  # convolutions that scale their weights
        ("efficientvit_b0", None),  # can't be traced
    ],
)
def test_folding_changes_no_level(name, num_left, norm):
    torch.manual_seed(0)
    config = replace(SMALL, backbone=f"timm/{name}", backbone_norm=norm, strides=(4, 8, 16, 32))
    backbone = as_trained(Pyramid, config).resnet.double()
    image = torch.rand(1, 3, 96, 128, dtype=torch.float64)
    with torch.inference_mode():
        wanted = backbone(image)
        fold_batch_norm(backbone)
        found = backbone(image)
    for level, expected in wanted.items():
        assert expected.std() > 0.01, level
        # float64: what is left is rounding, far below any wrong pairing
        torch.testing.assert_close(found[level], expected, rtol=1e-9, atol=1e-9)
    left = [module for module in backbone.modules() if "BatchNorm" in type(module).__name__]
    assert num_left is None or len(left) == num_left


@pytest.fixture(
    scope="module",
    params=[(MOBILE, "frozen_batch"), (CONVNEXT, "group")],
    ids=["mobile", "convnext"],
)
def model(request, tmp_path_factory):
    """A model folder with both exported programs, as `test_engines.py` has one of ResNet."""
    torch.manual_seed(0)
    backbone, norm = request.param
    published = preset("coco-r50-1x")
    config = replace(
        published,
        model=replace(SMALL, backbone=backbone, backbone_norm=norm, num_classes=3),
        input=replace(published.input, short_side=192, max_side=320),
        labels=replace(
            tiny().labels, level_ranges=((0, 64), (64, 128), (128, 256), (256, float("inf")))
        ),
    )
    detector = as_trained(PolarMask, config.model)
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.2)
    folder = tmp_path_factory.mktemp("timm") / "model"
    categories = tuple(Category(n, str(n)) for n in (1, 2, 3))
    save_model(folder, detector, ModelCard(config, categories))
    program = folder / PROGRAM_FILE
    export_program(load_model(folder)[0], program)
    reference = Predictor.load(folder, engine="eager")
    others = [reference.network_input(read_image(path)) for path in PHOTOS[3:]]
    quantize_program(program, calibrate(program, others), folder / INT8_FILE)
    return folder


@pytest.mark.parametrize("name", [n for n, kind in ENGINES.items() if kind.device == "cpu"])
def test_an_engine_equals_eager_float32_on_real_photos_within_its_tolerance(model, name):
    if "bf16" in name and not has_bf16():
        pytest.skip("this CPU has no bf16")
    eager, other = Predictor.load(model, engine="eager"), Predictor.load(model, engine=name)
    assert other.engine.name == name
    for path in PHOTOS[:3]:
        batch = eager.network_input(read_image(path))
        with torch.inference_mode():
            wanted, found = eager.engine.run(batch), other.engine.run(batch)
        assert found.level_hws == wanted.level_hws
        scores = [
            each.class_BLC.float().sigmoid() * each.quality_BL.float().sigmoid()[..., None]
            for each in (wanted, found)
        ]
        assert scores[0].std() > 0.01
        tolerance = ENGINES[name].score_tolerance
        torch.testing.assert_close(scores[1], scores[0], atol=tolerance, rtol=0)
        torch.testing.assert_close(
            found.ray_BLR, wanted.ray_BLR, atol=0, rtol=ENGINES[name].ray_tolerance
        )
