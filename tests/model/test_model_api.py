"""`polarmask.load` and what the model that it returns takes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polarmask
from polarmask.data.coco import Category
from polarmask.data.images import read_image
from polarmask.errors import DataError
from polarmask.inference.model_folder import DEFAULT_SCORE, ModelCard, save_model
from polarmask.model_sources.model import as_pixels
from polarmask.network.detector import PolarMask


@pytest.fixture(scope="module")
def folder(small_config, tmp_path_factory):
    return untrained(small_config, tmp_path_factory.mktemp("model") / "model")


def untrained(config, out, **postprocess):
    """Write a model that has learned nothing from images of 64 pixels."""
    torch.manual_seed(0)
    config = replace(
        config, postprocess=replace(config.postprocess, score_threshold=0.0, **postprocess)
    )
    detector = PolarMask(config.model).eval()
    categories = tuple(Category(n + 1, f"kind {n}") for n in range(config.model.num_classes))
    save_model(out, detector, ModelCard(config, categories, {}, {"image_side": 64}))
    return out


@pytest.fixture(scope="module")
def model(folder):
    return polarmask.load(folder, device="cpu", score=0)


@pytest.fixture(scope="module")
def image_file(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.fromarray(pixels).save(path)
    return path


def test_file_text_array_and_list_find_the_same(model, image_file):
    found = model(image_file)
    assert len(found)
    for other in (model(str(image_file)), model(read_image(image_file)), *model([image_file])):
        np.testing.assert_array_equal(other.scores, found.scores)
    [(path, inside)] = model.folder(image_file.parent)
    assert path == image_file
    np.testing.assert_array_equal(inside.scores, found.scores)
    assert found.plot().shape[2] == 3


def test_score_is_that_of_the_call_or_of_the_model(folder, image_file):
    model = polarmask.load(folder, device="cpu", score=0.9)
    everything = model(image_file, score=0)
    middle = float(np.median(everything.scores))
    assert len(model(image_file)) == int((everything.scores >= 0.9).sum())
    assert len(model(image_file, score=middle)) == int((everything.scores >= middle).sum())


def test_image_much_larger_than_the_training_images_is_cut_into_tiles(folder):
    large = np.random.default_rng(1).integers(0, 255, (64, 160, 3), dtype=np.uint8)
    tiled = polarmask.load(folder, device="cpu", score=0)(large)
    whole = polarmask.load(folder, device="cpu", score=0, tile=None)(large)
    assert tiled.image_hw == whole.image_hw == (64, 160)
    assert tiled.centers[:, 0].max() > 100  # of the last tile
    assert len(tiled) != len(whole)


def test_score_without_a_wish_is_the_one_that_the_model_keeps(folder, image_file, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "model"))
    everything = polarmask.load(folder, device="cpu")(image_file, score=0)
    kept = float(np.median(everything.scores))
    card = json.loads((own / "model.json").read_text())
    for least, content in (
        (kept, card | {"operating_score": kept}),
        (DEFAULT_SCORE, {k: v for k, v in card.items() if k != "operating_score"}),  # of old code
    ):
        (own / "model.json").write_text(json.dumps(content))
        found = polarmask.load(own, device="cpu")(image_file)
        assert found.min_score == least
        assert len(found) == int((everything.scores >= least).sum())
        assert len(polarmask.load(own, device="cpu")(image_file, score=0)) == len(everything)


def test_what_shrinking_and_the_limit_may_have_taken_is_said(small_config, tmp_path, caplog):
    config = replace(small_config, input=replace(small_config.input, max_side=64))
    folder = untrained(config, tmp_path / "model", max_instances=20)
    large = np.random.default_rng(1).integers(0, 255, (64, 640, 3), dtype=np.uint8)
    whole = polarmask.load(folder, device="cpu", tile=None)(large, score=0)
    assert set(whole.warnings) == {"shrunk", "results_cut"}
    assert "objects under 20 pixels are lost" in whole.warnings["shrunk"]
    assert "the array: more than 20 instances" in caplog.text
    in_tiles = polarmask.load(folder, device="cpu")
    assert len(in_tiles(large, score=0)) > 20
    assert set(in_tiles(large, score=0).warnings) == {"results_cut"}
    assert not in_tiles(large, score=1).warnings


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((5, 6), "uint8"), ((5, 6, 1), "uint16"), ((5, 6, 3), "float64"), ((5, 6, 4), "bool")],
)
def test_arrays_become_rgb(shape, kind):
    array = np.ones(shape, kind)
    pixels = as_pixels(array)
    assert pixels.shape == (5, 6, 3)
    assert pixels.max() == (255 if kind == "bool" else 1)


@pytest.mark.parametrize("shape", [(5,), (5, 6, 2), (1, 5, 6, 3), (0, 4)])
def test_other_arrays_are_refused(shape):
    with pytest.raises(DataError, match="is no image"):
        as_pixels(np.ones(shape))
    with pytest.raises(DataError, match="complex128 is no image"):
        as_pixels(np.ones((4, 4), complex))


def test_folder_in_place_of_an_image_is_named(model, tmp_path):
    with pytest.raises(DataError, match=r"model\.folder"):
        model(tmp_path)
