import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from polarmask.data.coco import Category
from polarmask.data.preprocess import canvas_hw, normalise, resize, resized_hw, to_canvas
from polarmask.errors import ModelFormatError
from polarmask.geometry.rays import ray_directions
from polarmask.inference.model_folder import (
    ModelCard,
    load_model,
    read_card,
    save_model,
    version_of,
)
from polarmask.inference.predictor import Predictor
from polarmask.inference.stage_clock import StageClock
from polarmask.network.detector import PolarMask

CATEGORIES = (Category(7, "cell"), Category(9, "yeast"), Category(30, "dust"))


@pytest.fixture(scope="module")
def card(small_config):
    return ModelCard(
        config=small_config,
        categories=CATEGORIES,
        provenance={"data_commit": "abc", "data_hash": "def"},
        training={"steps": 5},
    )


@pytest.fixture(scope="module")
def model(card, tmp_path_factory):
    """A network with random weights that finds something everywhere."""
    torch.manual_seed(0)
    detector = PolarMask(card.config.model)
    torch.nn.init.constant_(detector.head.class_logit.bias, 0.0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, detector, card)
    return folder


def noise(rows, columns, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (rows, columns, 3), dtype=np.uint8)


def test_a_model_folder_gives_back_what_was_saved(model, card):
    detector, read = load_model(model)
    assert read == card
    assert not detector.training
    assert read_card(model) == card


def test_answers_are_in_pixels_of_the_given_image(model):
    found = Predictor.load(model).predict([noise(90, 130)])[0]
    assert len(found) > 0
    assert found.image_hw == (90, 130)
    assert found.polygons.min() >= 0
    assert found.polygons[..., 0].max() <= 130
    assert found.polygons[..., 1].max() <= 90
    assert set(found.category_ids.tolist()) <= {7, 9, 30}
    assert (np.diff(found.scores) <= 0).all()
    x, y, width, height = found.boxes_xywh[0]
    assert (x, y) == pytest.approx(found.polygons[0].min(axis=0), abs=1e-4)
    assert (x + width, y + height) == pytest.approx(found.polygons[0].max(axis=0), abs=1e-4)


def test_a_neighbour_of_equal_size_changes_nothing(model):
    predictor = Predictor.load(model)
    alone = predictor.predict([noise(96, 128)])[0]
    beside = predictor.predict([noise(96, 128), noise(96, 128, seed=1)])[0]
    np.testing.assert_allclose(alone.scores, beside.scores, atol=1e-5)


def test_masks_are_those_of_the_polygons(model):
    found = Predictor.load(model).predict([noise(64, 64)])[0]
    rles = found.rle()
    assert len(rles) == len(found)
    assert all(rle["size"] == [64, 64] and isinstance(rle["counts"], str) for rle in rles)


def test_a_shrunk_image_is_answered_in_its_own_pixels(model, tmp_path):
    card = read_card(model)
    small = replace(card.config, input=replace(card.config.input, max_side=64))
    detector, _ = load_model(model)
    save_model(tmp_path / "small", detector, replace(card, config=small))
    image = cv2.resize(noise(8, 8), (256, 128), interpolation=cv2.INTER_CUBIC)
    found = Predictor.load(tmp_path / "small").predict([image])[0]
    assert found.image_hw == (128, 256)
    assert found.polygons[..., 0].max() > 128
    assert_rays_end_on_the_outline(found)


def assert_rays_end_on_the_outline(found):
    """Where no vertex was clipped, centre, ray lengths and angles give the polygon."""
    direction_R2 = ray_directions(found.polygons.shape[1], like=torch.ones(1)).numpy()
    drawn_NR2 = found.centers[:, None] + found.ray_lengths[..., None] * direction_R2
    low, high = np.zeros(2), np.array(found.image_hw[::-1])
    np.testing.assert_allclose(drawn_NR2.clip(low, high), found.polygons, atol=1e-3)


@pytest.mark.parametrize(
    ("intensity", "bits", "dtype"),
    [("as_is", 16, np.uint16), ("bit_depth", 12, np.uint16), ("bit_depth", 12, np.int32)],
)
def test_deep_images_are_answered_as_their_upper_eight_bits(model, intensity, bits, dtype):
    predictor = Predictor.load(model)
    plain = noise(40, 60)
    expected = predictor.predict([plain])[0]
    card = predictor.card
    images = replace(card.config.input, intensity=intensity, bits=bits)
    predictor.card = replace(card, config=replace(card.config, input=images))
    found = predictor.predict([plain.astype(dtype) << (bits - 8)])[0]
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.polygons, expected.polygons)


def test_an_image_with_other_bits_than_the_model_expects_is_logged(model, caplog):
    deep = noise(40, 60).astype(np.uint16) << 3
    for _ in range(2):
        Predictor.load(model).predict([deep])
    assert [record.getMessage() for record in caplog.records] == [
        "an image uses 11 bits and the model expects 16 (its input.intensity): the network sees "
        "it nearly black"
    ]


def test_a_selection_keeps_what_belongs_together(model):
    found = Predictor.load(model).predict([noise(64, 64)])[0]
    found = replace(found, further_parts={2: found.polygons[:1], 4: found.polygons[1:3]})
    chosen = found.select([4, 0])
    assert len(chosen) == 2
    np.testing.assert_array_equal(chosen.scores, found.scores[[4, 0]])
    np.testing.assert_array_equal(chosen.centers, found.centers[[4, 0]])
    assert [len(chosen.parts(row)) for row in range(2)] == [3, 1]
    assert chosen.rle() == [found.rle()[4], found.rle()[0]]
    assert len(found.select([])) == 0


def test_a_clock_gets_the_seconds_of_the_stages(model):
    clock = StageClock()
    predictor = Predictor.load(model)
    predictor.predict([noise(64, 64)], clock=clock)
    first = dict(clock.seconds)
    assert list(first) == ["network", "decode_rays"]
    assert all(seconds > 0 for seconds in first.values())
    predictor.predict([noise(64, 64)], clock=clock)
    assert clock.seconds["network"] > first["network"]


def test_no_images_no_answers(model):
    assert Predictor.load(model).predict([]) == []


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float64), np.zeros((0, 4, 3), np.uint8)],
    ids=["grey", "float", "empty"],
)
def test_what_is_no_rgb_image_is_refused(model, image):
    with pytest.raises(ValueError, match="expected"):
        Predictor.load(model).predict([image])


def test_a_folder_without_a_model_says_how_to_get_one(tmp_path):
    with pytest.raises(ModelFormatError, match="polarmask train"):
        read_card(tmp_path)


def test_an_unknown_format_version_is_refused_by_name(model, tmp_path):
    card = json.loads((model / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**card, "format_version": 2}))
    with pytest.raises(ModelFormatError, match="format version 2, this code reads 1"):
        read_card(tmp_path)


def test_damaged_weights_are_refused(model, tmp_path):
    (tmp_path / "model.json").write_bytes((model / "model.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ModelFormatError, match=r"model\.safetensors can't be read"):
        load_model(tmp_path)


def test_resizing_keeps_the_aspect_ratio_and_bounds_the_long_side(small_config):
    config = replace(small_config.input, short_side=800, max_side=1333)
    assert resized_hw((480, 640), config) == (800, 1067)
    assert resized_hw((500, 2000), config) == (333, 1333)
    assert resize(noise(48, 64), config).shape == (800, 1067, 3)


def test_canvases_hold_whole_locations_of_every_level():
    assert canvas_hw((800, 1067), (8, 16, 32, 64, 128)) == (896, 1152)
    assert canvas_hw((256, 256), (4, 8, 16)) == (256, 256)
    assert canvas_hw((1, 257), (4, 8, 16)) == (32, 288)


def test_padding_normalises_to_about_zero(small_config):
    canvas = to_canvas(noise(10, 10), (32, 32), small_config.input)
    normal = normalise(torch.from_numpy(canvas)[None], small_config.input)
    assert normal.shape == (1, 3, 32, 32)
    assert normal[:, :, 10:].abs().max() < 0.01


def test_the_version_follows_weights_card_and_name_alone(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    version = version_of(model, name="polarmask")
    assert re.fullmatch("[0-9a-f]{12}", version)
    (copy / "engines.json").write_text("{}")  # as in the folder of an archive
    assert version_of(copy, name="polarmask") == version
    assert version_of(copy, name="nuclei") != version
    (copy / "model.json").write_text((copy / "model.json").read_text() + "\n")
    assert version_of(copy, name="polarmask") != version
    with pytest.raises(ModelFormatError, match=r"has no model\.json"):
        version_of(tmp_path / "absent", name="polarmask")
