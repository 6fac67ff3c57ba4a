"""A model answers alike, wherever it lies."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from polarmask.cli import main
from polarmask.data.images import read_image
from polarmask.errors import ModelFormatError, ServerError
from polarmask.inference.predictor import Predictor
from polarmask.model_sources.open_model import open_model, open_server
from polarmask.training.train import TrainOptions, train


@pytest.fixture(scope="module")
def run(drawn_data, drawn_labels, small_config, tmp_path_factory):
    """A finished run of a few steps, whose low scores count."""
    out = tmp_path_factory.mktemp("a run")
    shown = replace(small_config.postprocess, score_threshold=0.0, max_instances=20)
    config = replace(small_config, postprocess=shown)
    train(config, TrainOptions(data=drawn_data, labels=drawn_labels, out=out))
    return out


@pytest.fixture(scope="module")
def image(drawn_data):
    return read_image(next((drawn_data / "images").glob("val*.png")))


def test_a_run_its_model_and_its_checkpoint_find_the_same(run, image):
    expected = Predictor.load(run / "model").predict([image])[0]
    for source in (run, run / "model", run / "checkpoint.pt"):
        found = open_model(str(source)).predict([image])[0]
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
        np.testing.assert_array_equal(found.category_ids, expected.category_ids)
        assert found.category_names == expected.category_names


def test_a_run_that_still_trains_answers_by_its_checkpoint(run, image, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    assert len(open_model(str(tmp_path)).predict([image])[0])


def test_what_is_no_model_is_refused_by_name(tmp_path):
    (tmp_path / "a.mar").write_bytes(b"no zip")
    for source in (tmp_path / "a.mar", tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFormatError, match=str(source)):
            open_model(str(source))


def test_a_server_that_is_not_there_is_named(image):
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/predictions"):
        open_server("http://127.0.0.1:9/predictions/polarmask").find(image)


def test_visualize_draws_what_predict_writes(run, drawn_data, tmp_path, capsys):
    images = sorted((drawn_data / "images").glob("val*.png"))
    flags = ["--model", str(run), "--score", "0", *map(str, images)]
    assert main(["predict", "--out", str(tmp_path / "found.json"), *flags]) == 0
    assert main(["visualize", "--out", str(tmp_path / "plain"), *flags]) == 0
    assert main(["visualize", "--rays", "--out", str(tmp_path / "rays"), *flags]) == 0
    entries = json.loads((tmp_path / "found.json").read_text())
    assert [entry["image"] for entry in entries] == [str(path) for path in images]
    printed = capsys.readouterr().out
    for entry in entries:
        assert printed.count(f"{entry['image']}: {len(entry['instances'])} instances\n") == 3
    for number, path in enumerate(images):
        name = f"{number:04d}_{path.stem}.jpg"
        with Image.open(tmp_path / "plain" / name) as plain, Image.open(path) as given:
            without = np.asarray(plain)
            assert plain.width / plain.height == pytest.approx(given.width / given.height, rel=0.02)
        assert (without != np.asarray(Image.open(tmp_path / "rays" / name))).any()
    assert (tmp_path / "plain" / "contact_sheet.jpg").is_file()
