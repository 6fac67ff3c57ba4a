"""Archive and server of a model find what the model finds."""

import numpy as np
import pytest

from polarmask.errors import DataError
from polarmask.inference import Predictor
from polarmask.model_source import open_model
from polarmask.predict import visualize_images


def test_an_archive_and_a_server_find_what_the_model_finds(
    random_model, archive, server, picture, tmp_path
):
    expected = Predictor.load(random_model).predict([picture])[0]
    assert len(expected) > 3
    for source in (str(archive.path), server.predict_url):
        found = open_model(source).predict([picture])[0]
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
        np.testing.assert_allclose(found.polygons, expected.polygons, atol=0.05)


def test_a_server_tells_no_rays(server, png, tmp_path):
    (tmp_path / "a.png").write_bytes(png)
    finder = open_model(server.predict_url)
    assert visualize_images(finder, [tmp_path / "a.png"], tmp_path / "out", min_score=0)
    with pytest.raises(DataError, match="no centres and no rays"):
        visualize_images(finder, [tmp_path / "a.png"], tmp_path / "out", rays=True)


def test_a_refused_image_is_named_with_the_server_s_reason(server):
    with pytest.raises(DataError, match="413"):
        open_model(server.predict_url).predict([np.zeros((12_000, 1, 3), np.uint8)])
