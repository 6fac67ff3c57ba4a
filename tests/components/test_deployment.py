"""Deployment on a real TorchServe with a real registry: what fails changes nothing."""

from dataclasses import replace

import pytest
import torch

from factories import make_tiny_coco
from polarmask.coco import Category
from polarmask.detector import PolarMask
from polarmask.model_folder import ModelCard, save_model
from polarmask.presets import tiny
from polarmask_components.deployment import deploy, facts_of
from polarmask_components.errors import ConflictError
from polarmask_components.local_server import ask_champion, is_serving, stop_server
from polarmask_components.registry import open_registry
from polarmask_serving.errors import ServingError


def make_model(folder, seed):
    torch.manual_seed(seed)
    config = replace(tiny(), model=replace(tiny().model, num_classes=1))
    provenance = {"data_commit": "c0ffee", "data_hash": "a.dir", "code_version": "v1"}
    card = ModelCard(config, (Category(1, "cell"),), provenance)
    save_model(folder, PolarMask(config.model), card)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a registry and a server, and the image to ask with."""
    folder = tmp_path_factory.mktemp("a deployment")
    data = make_tiny_coco(folder / "data", images=1, val_images=1)
    yield folder, (data / "images" / "val_000.png").read_bytes()
    stop_server(folder / "server")


@pytest.fixture(scope="module")
def champion(place):
    folder, _ = place
    return put(place, make_model(folder / "first", 1), expected=None)


def put(place, model, *, expected):
    folder, image = place
    return deploy(
        model,
        facts=facts_of(model, {"mask_ap": 0.5}),
        name="polarmask",
        target=folder / "server",
        registry=open_registry(str(folder / "registry")),
        expected=expected,
        image=image,
    )


def state(place):
    """Return who is champion in the registry and who answers."""
    folder, image = place
    answering = ask_champion(folder / "server", name="polarmask", image=image)
    registered = open_registry(str(folder / "registry")).champion()
    return registered.version, answering.answer["model"]["version"]


def test_nothing_is_served_before_the_first_deployment(tmp_path):
    assert ask_champion(tmp_path, name="polarmask", image=b"") is None
    assert not is_serving(tmp_path)
    stop_server(tmp_path)


def test_first_model_is_served_and_promoted(place, champion):
    assert champion.answer["model"] == {"name": "polarmask", "version": champion.version}
    assert state(place) == (champion.version, champion.version)
    registered = open_registry(str(place[0] / "registry")).champion()
    assert registered.facts.data_commit == "c0ffee"
    assert registered.facts.config["name"] == "tiny"
    assert registered.facts.metrics == {"mask_ap": 0.5}


def test_deploying_the_champion_again_changes_nothing(place, champion):
    again = put(place, place[0] / "first", expected=champion.version)
    assert again.version == champion.version
    assert len(open_registry(str(place[0] / "registry")).history()) == 1


def test_model_that_lost_the_race_serves_nobody(place, champion):
    with pytest.raises(ConflictError, match=champion.version):
        put(place, make_model(place[0] / "late", 2), expected=None)
    assert state(place) == (champion.version, champion.version)


def test_model_that_does_not_load_changes_nothing(place, champion):
    broken = make_model(place[0] / "broken", 3)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ServingError, match="did not come up"):
        put(place, broken, expected=champion.version)
    assert state(place) == (champion.version, champion.version)


def test_failed_first_deployment_leaves_no_server(place, tmp_path):
    broken = make_model(tmp_path / "broken", 4)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(ServingError):
        put((tmp_path, place[1]), broken, expected=None)
    assert not is_serving(tmp_path / "server")
    assert open_registry(str(tmp_path / "registry")).champion() is None
