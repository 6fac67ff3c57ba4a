"""The published runs: their numbers, their networks, and that each one trains."""

from dataclasses import replace

import pytest
import timm
import torch
import torchvision

from polarmask.cli import main
from polarmask.config.presets import PRESETS, original, preset, tiny
from polarmask.config.published import PUBLISHED
from polarmask.config.star import STAR
from polarmask.inference.model_folder import load_model
from polarmask.network.backbone import Pyramid
from polarmask.network.backbone_weights import load_backbone_weights
from polarmask.network.detector import PolarMask
from polarmask.training.train import TrainOptions, train

NETWORKS = {
    ("resnet50", False): "coco-r50-1x",
    ("resnet101", False): "coco-r101-1x",
    ("resnext101_64x4d", False): "coco-x101-1x",
    ("resnet50", True): "coco-r50-dcn-1x-32gpu",
    ("resnet101", True): "coco-r101-dcn-1x-32gpu",
    ("resnext101_64x4d", True): "coco-x101-dcn-1x-32gpu",
}


def test_there_are_fifteen_published_runs_with_their_mask_ap():
    assert sorted(run.mask_ap for run in PUBLISHED.values()) == sorted(
        [29.2, 30.7, 32.5, 29.1, 30.4, 32.6, 32.0, 33.5, 34.9, 30.5, 31.9, 33.5, 33.3, 34.3, 35.9]
    )
    assert {(c.model.backbone, c.model.dcn) for c in map(preset, PUBLISHED)} == set(NETWORKS)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_run_has_the_published_recipe(name):
    known, config = PUBLISHED[name], preset(name)
    optim = config.optim
    assert config.name == name
    assert optim.batch_size == optim.lr_batch_size == known.gpus * known.images_per_gpu
    # The authors scaled linearly throughout: 0.01 for 16 images.
    assert optim.lr == pytest.approx(0.01 * optim.batch_size / 16)
    assert optim.warmup_lr == pytest.approx(0.01 / 3)
    drops = [round(share * optim.epochs, 6) for share in optim.lr_drops]
    if "2x" in name:
        assert (optim.epochs, drops, optim.warmup_steps) == (26, [18, 24], 2000)
        assert config.input.train_short_sides == (640, 800)
        assert (config.input.short_side, config.input.max_side) == (800, 1333)
    elif "32gpu" in name:
        assert (optim.epochs, drops, optim.warmup_steps) == (14, [10, 13], 2000)
    else:
        assert (optim.epochs, drops, optim.warmup_steps) == (12, [8, 11], 500)
    is_caffe = "x101" not in name
    assert (config.model.backbone_style == "caffe") is is_caffe
    assert (config.input.channel_order == "bgr") is is_caffe
    assert config.input.mean[0] == (122.7717 if is_caffe else 123.675)
    assert config.model.frozen_stages == 1


def test_original_turns_the_algorithm_and_leaves_the_recipe():
    ours, theirs = preset("coco-r50-2x-32gpu"), preset("coco-r50-2x-32gpu-original")
    assert theirs == original(ours)
    assert theirs.labels.mode == theirs.loss.normalizer == theirs.postprocess.score == "original"
    assert (theirs.loss.centerness, theirs.model.length_unit) == ("polar", "pixel")
    assert (theirs.input.keep_ratio, theirs.input.multiple) == (False, 128)
    assert replace(theirs.optim, param_groups="matrices") == ours.optim


def test_original_mode_works_without_resizing_too():
    theirs = preset("tiny-original")
    assert theirs.model.box_branch
    assert (theirs.model.length_unit, theirs.model.first_ray) == ("pixel", 1.0)
    assert theirs.input == tiny().input


def test_presets_are_listed_with_what_is_published(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(PRESETS) + 1
    assert lines[-1].startswith("auto ")
    row = next(line for line in lines if line.startswith("coco-x101-dcn-2x-32gpu "))
    assert row.endswith("resnext101_64x4d DCN  26      1333 x 640-800  32 x 1         0.02    35.9")


def test_an_untrained_published_network_starts_as_the_paper_s():
    assert {preset(name).model.first_ray for name in PUBLISHED} == {1.0}


@pytest.mark.parametrize(
    "name", {preset(name).model: name for name in sorted({**PUBLISHED, **STAR})}.values()
)
def test_every_network_for_coco_builds_with_five_levels(name):
    config = preset(name).model
    with torch.device("meta"):
        detector = PolarMask(config).eval()
        predictions = detector(torch.zeros(1, 3, 128, 256))
    assert predictions.level_hws == tuple((128 // s, 256 // s) for s in config.strides)
    learned = {name for name, p in detector.named_parameters() if p.requires_grad}
    if not config.frozen_stages:
        assert learned == {name for name, _ in detector.named_parameters()}
        return
    assert not any(
        name.startswith(("pyramid.resnet.conv1", "pyramid.resnet.layer1")) for name in learned
    )
    assert any(name.startswith("pyramid.resnet.layer2") for name in learned)


def test_a_star_run_has_the_losses_of_tiny_and_the_schedule_of_polarnext():
    runs = [preset(name) for name in ("star-r50-1x", "star-r50-3x", "star-convnext-t-3x")]
    assert {run.loss for run in runs} == {tiny().loss}
    assert {run.optim.batch_size for run in runs} == {8}
    drops = [[round(share * run.optim.epochs, 6) for share in run.optim.lr_drops] for run in runs]
    assert drops == [[8, 11], [27, 33], [27, 33]]
    assert [run.optim.lr for run in runs] == [0.01, 0.01, 1e-4]
    assert [run.input.train_short_sides for run in runs] == [None, (640, 800), (640, 800)]


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """Return files of random weights that keep activations small, one a backbone."""
    folder = tmp_path_factory.mktemp("weights")

    def write(config):
        path = folder / f"{config.backbone.replace('/', '-')}.pt"
        if not path.exists() and config.backbone.startswith("timm/"):
            torch.save(timm.create_model(config.backbone.removeprefix("timm/")).state_dict(), path)
        elif not path.exists():
            state = Pyramid(replace(config, dcn=False)).resnet.state_dict()
            torch.save(
                {k: v * 0.1 if k.endswith("bn3.weight") else v for k, v in state.items()}, path
            )
        return str(path)

    return write


def shrunk(config, weights_of):
    """Return the run with its own network, losses and labels on small images."""
    sides = None if config.input.train_short_sides is None else (64, 80)
    return replace(
        config,
        input=replace(config.input, short_side=80, max_side=128, train_short_sides=sides),
        optim=replace(config.optim, batch_size=2, epochs=0.5),
        backbone_weights=weights_of(config.model),
    )


def train_in_two_halves(config, data, out):
    options = TrainOptions(data=data, out=out)
    train(config, replace(options, stop_after=1))
    folder = train(config, options)
    detector, card = load_model(folder)
    assert card.training["steps"] == 2
    assert all(torch.isfinite(value).all() for value in detector.state_dict().values())
    assert card.config.optim == config.optim


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PUBLISHED, *STAR])
def test_a_run_for_coco_trains_stops_and_goes_on(name, drawn_data, tmp_path, weights_of):
    train_in_two_halves(shrunk(preset(name), weights_of), drawn_data, tmp_path)


def test_original_mode_trains_stops_and_goes_on(drawn_data, tmp_path, weights_of):
    config = shrunk(preset("coco-r50-1x-original"), weights_of)
    train_in_two_halves(config, drawn_data, tmp_path)


@pytest.mark.slow
def test_the_first_published_run_takes_a_step_at_full_size(drawn_data, tmp_path, weights_of):
    config = preset("coco-r50-1x-original")
    config = replace(
        config,
        optim=replace(config.optim, batch_size=1, epochs=0.125),
        backbone_weights=weights_of(config.model),
    )
    assert (config.input.max_side, config.input.short_side) == (1280, 768)
    train(config, TrainOptions(data=drawn_data, out=tmp_path))
    assert (tmp_path / "model").is_dir()


def test_the_light_run_trains_stops_and_goes_on(drawn_data, tmp_path):
    light = preset("light")
    config = replace(
        light,
        input=replace(light.input, short_side=128, max_side=128),
        optim=replace(light.optim, batch_size=2, epochs=0.5),
    )
    train_in_two_halves(config, drawn_data, tmp_path)


@pytest.mark.parametrize("norm", ["batch", "frozen_batch", "group"])
def test_mobilenet_has_a_level_for_each_stride(norm):
    config = replace(preset("light").model, backbone_norm=norm, strides=(2, 4, 8, 16, 32, 64))
    with torch.device("meta"):
        levels = Pyramid(config)(torch.zeros(1, 3, 128, 192))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (96, 128 // stride, 192 // stride) for stride in config.strides
    ]


@pytest.mark.parametrize(("frozen", "learns"), [(0, 0), (1, 4), (2, 7), (3, 13), (4, 16)])
def test_frozen_stages_of_mobilenet_are_those_of_its_strides(frozen, learns):
    config = replace(preset("light").model, frozen_stages=frozen)
    parts = Pyramid(config).resnet.named_children()
    assert [
        int(name) for name, part in parts if any(p.requires_grad for p in part.parameters())
    ] == list(range(learns, 16))


def test_mobilenet_starts_from_published_weights(tmp_path):
    config = replace(preset("light").model, backbone_norm="frozen_batch")
    published = torchvision.models.mobilenet_v3_large(weights=None)
    torch.save(published.state_dict(), tmp_path / "weights.pt")
    pyramid = Pyramid(config)
    load_backbone_weights(pyramid, str(tmp_path / "weights.pt"))
    assert torch.equal(pyramid.resnet["0"][0].weight, published.features[0][0].weight)
