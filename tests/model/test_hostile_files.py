"""Files that come from elsewhere: whatever they hold, one line says what is wrong with them."""

import json
import zipfile
from dataclasses import replace

import pytest
import torch

from polarmask.config.presets import tiny
from polarmask.config.settings import from_dict, to_dict
from polarmask.data.coco import Category
from polarmask.engines.ranking import read_ranking
from polarmask.errors import ConfigError, LabelStoreError, ModelFormatError
from polarmask.inference.model_folder import ModelCard, load_model, read_card, save_model
from polarmask.labels.store import LabelStore
from polarmask.model_sources.open_model import open_model
from polarmask.network.detector import PolarMask

DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = replace(tiny().model, num_classes=1, channels=32, tower_depth=1)
    config = replace(tiny(), model=network)
    folder = tmp_path_factory.mktemp("hostile") / "model"
    save_model(folder, PolarMask(network), ModelCard(config, (Category(1, "cell"),)))
    return folder


@pytest.fixture
def card(model):
    return json.loads((model / "model.json").read_bytes())


def refusal_of(read, folder, error):
    with pytest.raises(error) as refused:
        read(folder)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 600 + len(str(folder))
    return message


def with_setting(card, path, value):
    *parents, leaf = path.split(".")
    section = card
    for name in parents:
        section = section[name]
    section[leaf] = value
    return json.dumps(card)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "7", '"model"', "{", "{}", DEEP, '{"a":' * 5000, "\x00", "\udcff"],
    ids=lambda text: text[:6].encode("ascii", "replace").decode() or "empty",
)
def test_a_card_index_or_ranking_that_is_none_is_refused_in_one_line(text, tmp_path):
    for name in ("model.json", "index.json", "engines.json"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    refusal_of(read_card, tmp_path, ModelFormatError)
    refusal_of(LabelStore.open, tmp_path, LabelStoreError)
    refusal_of(lambda folder: read_ranking(folder / "engines.json"), tmp_path, ModelFormatError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("config", []),
        ("config", "tiny"),
        ("config.model", [[[[]]]]),
        ("config.model.num_rays", 10**9),
        ("config.model.num_rays", 10**4000),
        ("config.model.num_rays", float("nan")),
        ("config.model.num_rays", "many"),
        ("config.model.num_rays", -36),
        ("config.model.num_classes", 10**9),
        ("config.model.channels", 2**40),
        ("config.model.channels", 0),
        ("config.model.tower_depth", 10**9),
        ("config.model.strides", [4 * 2**k for k in range(1000)]),
        ("config.labels.level_ranges", [[0, 1], [1, "inf"]] * 1000),
        ("config.labels.center_radius", float("nan")),
        ("config.input.max_side", 10**9),
        ("config.input.short_side", 10**9),
        ("config.input.multiple", 32 * 10**8),
        ("config.input.mean", [float("nan")] * 3),
        ("config.input.std", [1.0, float("inf"), 1.0]),
        ("config.postprocess.pre_nms_top_k", 10**12),
        ("config.postprocess.pre_nms_top_k", -1),
        ("config.postprocess.max_instances", 10**12),
        ("config.postprocess.score_threshold", float("nan")),
        ("categories", 3),
        ("categories", []),
        ("categories", [3]),
        ("categories", [{"id": "one", "name": "cell"}]),
        ("categories", [{"id": 1, "name": 5}]),
        ("categories", [{"id": 1, "name": "\ud800"}]),
        ("categories", [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]),
        ("provenance", ["a"]),
        ("training", {"steps": "many"}),
        ("operating_score", 7),
        ("operating_score", float("nan")),
        ("format_version", "9" * 10**6),
    ],
    ids=lambda each: each if isinstance(each, str) and "." in each else "",
)
def test_a_setting_of_a_card_that_cannot_work_is_refused_in_one_line(card, path, value, tmp_path):
    (tmp_path / "model.json").write_text(with_setting(card, path, value))
    message = refusal_of(read_card, tmp_path, ModelFormatError)
    assert (
        path.rpartition(".")[2].replace("_", " ") in message.replace("_", " ") or "\\ud" in message
    )


def test_infinity_stays_possible_where_it_means_something():
    assert from_dict(to_dict(tiny())) == tiny()
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        from_dict(to_dict(tiny()) | {"optim": {"lr": float("inf")}})


def test_weights_of_another_network_are_refused_before_memory_is_taken_for_it(
    model, card, tmp_path, monkeypatch
):
    wide = with_setting(card, "config.model.channels", 1024)
    (tmp_path / "model.json").write_text(wide)
    (tmp_path / "model.safetensors").hardlink_to(model / "model.safetensors")
    devices = []
    build = PolarMask.__init__

    def noted(self, config):
        build(self, config)
        devices.extend(each.device.type for each in self.parameters())

    monkeypatch.setattr(PolarMask, "__init__", noted)
    message = refusal_of(load_model, tmp_path, ModelFormatError)
    assert "1024" in message
    assert set(devices) == {"meta"}


@pytest.mark.parametrize(
    "splits",
    [
        [],
        {"train": []},
        {"train": {"shards": 3}},
        {"train": {"shards": [{"file": 1, "sha256": "", "images": []}]}},
        {"train": {"shards": [{"file": "a", "sha256": "", "images": [[]]}]}},
        {"train": {"shards": [{"file": "../../a", "sha256": "", "images": []}]}},
    ],
)
def test_an_index_of_labels_that_is_wrong_inside_is_refused_in_one_line(splits, tmp_path):
    index = {"format_version": 2, "settings": {}, "splits": splits}
    (tmp_path / "index.json").write_text(json.dumps(index))
    refusal_of(LabelStore.open, tmp_path, LabelStoreError)


@pytest.mark.parametrize("change", [{"engines": [3]}, {"engines": 3}, {"canvas_hw": "x"}])
def test_a_ranking_that_is_wrong_inside_is_refused_in_one_line(change, tmp_path):
    content = {
        **{"format_version": 1, "weights_sha256": "", "device": "cpu", "cpu": "", "images": ""},
        **{"canvas_hw": [8, 8], "engines": [], "ranking": []},
    }
    path = tmp_path / "engines.json"
    path.write_text(json.dumps(content))
    assert read_ranking(path).canvas_hw == (8, 8)
    path.write_text(json.dumps(content | change))
    refusal_of(read_ranking, path, ModelFormatError)


@pytest.mark.parametrize("kind", ["bomb", "no zip", "unknown compression"])
def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(kind, tmp_path):
    path = tmp_path / "model.mar"
    packing = zipfile.ZIP_DEFLATED if kind == "bomb" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("model/model.json", bytes(10**6))
    data = path.read_bytes()
    if kind == "unknown compression":
        data = data.replace(b"\x14\x00\x00\x00\x00\x00", b"\x14\x00\x00\x00\x5f\x00")
    path.write_bytes(data[:50] if kind == "no zip" else data)
    message = refusal_of(open_model, path, ModelFormatError)
    assert "is not an archive of a model" in message
    assert not list(tmp_path.glob("model/*"))
