"""Archive and server of a model find what the model finds."""

import numpy as np
import pytest

from polarmask.errors import DataError
from polarmask.inference.image_files import visualize_images
from polarmask.inference.predictor import Predictor
from polarmask.model_sources.open_model import open_model, open_server
from polarmask_serving.client.read_answer import read_instances


def test_an_archive_and_a_server_find_what_the_model_finds(
    random_model, archive, server, picture, tmp_path
):
    expected = Predictor.load(random_model).find(picture)
    assert len(expected) > 3
    for finder in (open_model(str(archive.path)), open_server(server.predict_url)):
        found = finder.find(picture)
        assert found.min_score == expected.min_score
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
        np.testing.assert_allclose(found.polygons, expected.polygons, atol=0.05)


def test_what_a_server_finds_is_drawn_with_its_rays(server, png, tmp_path):
    (tmp_path / "a.png").write_bytes(png)
    finder = open_server(server.predict_url)
    looked = visualize_images(
        finder, [tmp_path / "a.png"], tmp_path / "out", min_score=0, rays=True
    )
    assert looked.counts[str(tmp_path / "a.png")] > 3


def test_a_refused_image_is_named_with_the_server_s_reason(server):
    with pytest.raises(DataError, match="413"):
        open_server(server.predict_url).find(np.zeros((12_000, 1, 3), np.uint8))


def test_parts_come_back_from_an_answer():
    answer = {"image": {"height": 8, "width": 8}, "model": {"name": "cells", "version": "1"}}
    one, other = np.eye(4, 2).tolist(), np.ones((4, 2)).tolist()
    common = {"category_id": 3, "category": "cell", "score": 0.5, "bbox": [0, 0, 1, 1]}
    entries = [{**common, "polygon": one, "polygons": [one, other]}, {**common, "polygon": other}]
    found = read_instances(answer | {"instances": entries})
    assert [len(found.parts(row)) for row in (0, 1)] == [2, 1]
    assert len(read_instances(answer | {"instances": []})) == 0
