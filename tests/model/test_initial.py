"""A training that starts from another model's weights."""

from dataclasses import replace

import pytest
import torch

from polarmask.cli import main
from polarmask.data.coco import Category
from polarmask.errors import ConfigError
from polarmask.inference.model_folder import ModelCard, load_model, save_model
from polarmask.model_sources.open_model import open_weights
from polarmask.network.detector import PolarMask
from polarmask.training.initial import InitialWeights, start_from

NAMES = ("disk", "star", "moon")


def detector_of(config, names, seed):
    torch.manual_seed(seed)
    return PolarMask(replace(config.model, num_classes=len(names)))


def categories(*names):
    return tuple(Category(n, name) for n, name in enumerate(names))


def initial_of(config, detector, names):
    return InitialWeights("runs/old", config, detector.state_dict(), categories(*names))


def test_all_but_new_categories_is_taken(small_config):
    old = detector_of(small_config, NAMES, 1)
    new = detector_of(small_config, ("moon", "ring"), 2)
    before = new.head.class_logit.bias.detach().clone(), new.head.class_logit.weight[1].clone()
    line = start_from(new, initial_of(small_config, old, NAMES), categories("moon", "ring"))
    assert line.startswith("start from runs/old: 100% of the parameters; new: no tensors")
    assert "1 categories (ring)" in line
    for name, value in old.state_dict().items():
        if "class_logit" not in name:
            torch.testing.assert_close(new.state_dict()[name], value)
    torch.testing.assert_close(new.head.class_logit.weight[0], old.head.class_logit.weight[2])
    torch.testing.assert_close(new.head.class_logit.weight[1], before[1])


def test_other_number_of_rays_keeps_the_rest(small_config):
    old = detector_of(small_config, NAMES, 1)
    config = replace(small_config, model=replace(small_config.model, num_rays=20))
    new = detector_of(config, NAMES, 2)
    line = start_from(new, initial_of(small_config, old, NAMES), categories(*NAMES))
    assert "2 tensors (head.ray.weight, head.ray.bias), no categories" in line


def test_another_network_is_refused(small_config):
    old = detector_of(small_config, NAMES, 1)
    config = replace(small_config, model=replace(small_config.model, channels=32))
    with pytest.raises(ConfigError, match="leave out --preset"):
        start_from(
            PolarMask(replace(config.model, backbone="mobilenet_v3_large")),
            initial_of(small_config, old, NAMES),
            categories(*NAMES),
        )


@pytest.fixture(scope="module")
def old_model(small_config, drawn_data, tmp_path_factory):
    """A model of the drawn data's categories, with its own settings."""
    from polarmask.data.coco import load_coco

    names = load_coco(drawn_data, "train").categories
    config = replace(
        small_config, model=replace(small_config.model, num_classes=len(names)), name="old"
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("old") / "model"
    save_model(folder, PolarMask(config.model), ModelCard(config, names, {}, {}))
    return folder


def test_command_takes_weights_and_settings_of_the_model(old_model, drawn_data, tmp_path, caplog):
    caplog.set_level("INFO")
    small = ["--set", "optim.epochs=0.1", "--set", "optim.lr=1e-12", "--set", "optim.ema_decay=0"]
    command = ["train", "--data", str(drawn_data), "--init-from", str(old_model), *small]
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "100% of the parameters; new: no tensors, no categories" in caplog.text
    model, card = load_model(tmp_path / "run" / "model")
    assert card.config.name == "old"
    assert card.provenance["init_from"] == str(old_model)
    given = open_weights(old_model).tensors
    # The learning rate is next to nothing, so the weights stay.
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, given[name], atol=1e-4, rtol=1e-4)
    caplog.clear()
    assert main([*command, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "start from" not in caplog.text  # it resumes
