import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import costly_requests as costly
from polarmask.inference.predictor import Predictor, Prepared
from polarmask.inference.stage_clock import StageClock
from polarmask_serving.answer import batch as batch_module
from polarmask_serving.answer import wire
from polarmask_serving.answer.batch import STAGES, Request, answer_batch, predict_each, prepare_each
from polarmask_serving.errors import (
    CostlyImageError,
    DamagedImageError,
    EmptyRequestError,
    ImageTooLargeError,
    NotAnImageError,
    PredictionError,
    TooManyTilesError,
)
from polarmask_serving.torchserve import launch

MODEL = {"name": "polarmask", "version": "1"}


@pytest.fixture(scope="module")
def predictor(random_model):
    return Predictor.load(random_model, threads=1)


class Picky:
    """Fails, as a model may, on every batch that holds a black image."""

    def predict_prepared(self, images, *, clock):
        if any(image.pixels.max() == 0 for image in images):
            raise RuntimeError("black")
        return [image.pixels.max() for image in images]


def prepared(image):
    return Prepared(pixels=image, given_hw=image.shape[:2])


def found_in(predictor, *images):
    ready = [predictor.prepare(i) if isinstance(i, np.ndarray) else i for i in images]
    return predict_each(predictor, ready, StageClock())


def answers_to(predictor, *bodies, headers=None):
    batch = [Request(fields={"body": body}, headers=headers or {}) for body in bodies]
    return answer_batch(predictor, batch, MODEL)


def test_each_request_of_a_batch_gets_its_own_answer_or_error(predictor, png, jpeg):
    answers = answers_to(predictor, png, b"", b"{oops", jpeg, b"hello", png)
    codes = [answer.error.code if answer.error else None for answer in answers]
    assert codes == [None, "empty_request", "bad_json", None, "not_an_image", None]
    assert answers[0].body == answers[5].body == answers_to(predictor, png)[0].body


def test_an_answer_names_its_stages(predictor, png):
    served, refused = answers_to(predictor, png, b"no")
    assert tuple(served.seconds) == STAGES
    assert all(seconds > 0 for seconds in served.seconds.values())
    assert refused.seconds["network"] == served.seconds["network"]


def test_a_fault_of_ours_in_reading_a_request_harms_no_other(predictor, png, monkeypatch):
    good = predictor.prepare

    def prepare(image, **options):
        if image.max() == 0:
            raise RuntimeError("a bug")
        return good(image, **options)

    monkeypatch.setattr(predictor, "prepare", prepare)
    black = png_of(np.zeros((120, 10, 3), np.uint8))
    served, failed = answers_to(predictor, png, black)
    assert served.error is None
    assert (failed.error.status, failed.error.code) == (500, "prediction_failed")


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["polygons", "boxes_xywh"])
def test_an_answer_that_holds_no_number_is_an_error(predictor, png, monkeypatch, where, number):
    (found,) = found_in(predictor, np.zeros((64, 64, 3), np.uint8))
    getattr(found, where).flat[0] = number
    monkeypatch.setattr(predictor, "predict_prepared", lambda images, clock: [found])
    (answer,) = answers_to(predictor, png)
    assert answer.error.code == "prediction_failed"
    assert json.loads(answer.body)["error"]["message"]


def png_of(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_pixel_limit_holds_for_all_images_of_a_request_together(predictor):
    data = png_of(np.zeros((4_000, 4_000), np.uint8))
    first, second, third = prepare_each(predictor, [data, data, data[:20]])
    assert first.given_hw == (4_000, 4_000)
    assert isinstance(second, ImageTooLargeError)
    assert isinstance(third, DamagedImageError)


@pytest.fixture(scope="module")
def tiler(random_model, tmp_path_factory):
    """A model that learned from images of 64 pixels, which shows scores from 0.9."""
    folder = shutil.copytree(random_model, tmp_path_factory.mktemp("tiles") / "model")
    card = json.loads((folder / "model.json").read_text())
    card |= {"training": {"image_side": 64}, "operating_score": 0.9}
    (folder / "model.json").write_text(json.dumps(card))
    return Predictor.load(folder, threads=1)


def test_a_large_image_is_answered_with_tiles_unless_asked_otherwise(tiler, picture, png):
    everything = {"X-Score-Threshold": "0"}
    (answer,) = answers_to(tiler, png, headers=everything)
    tiled = json.loads(answer.body)
    assert len(tiled["instances"]) == len(tiler.predict([picture])[0]) > 30  # the limit of a tile
    (answer,) = answers_to(tiler, png, headers=everything | {"X-Tile": "none"})
    whole = json.loads(answer.body)
    assert len(whole["instances"]) == 30
    assert "results_cut" in whole["warnings"]


def test_scores_are_those_of_the_model_unless_asked_otherwise(tiler, png):
    for headers, least in (({}, 0.9), ({"X-Score-Threshold": "0.95"}, 0.95)):
        (answer,) = answers_to(tiler, png, headers=headers)
        (everything,) = answer.outcomes
        content = json.loads(answer.body)
        assert content["default_score_threshold"] == 0.9
        assert len(content["instances"]) == (everything.scores >= least).sum() < len(everything)


def test_too_many_tiles_are_refused_before_a_pixel_is_decoded(tiler, png):
    data = png_of(np.zeros((1_500, 1_500), np.uint8))
    first, second, third = prepare_each(tiler, [data, data[:100], png])
    assert first.tile == 64
    assert isinstance(second, TooManyTilesError)
    assert "in parts, or with tile=none" in str(second)
    assert isinstance(third, Prepared)
    first, second = prepare_each(tiler, [data, data], in_tiles=False)
    assert first.tile is second.tile is None


def test_a_network_that_is_too_slow_for_the_tiles_is_stopped_in_time(tiler, png, monkeypatch):
    monkeypatch.setattr(batch_module, "_MODEL_SECONDS", 0.0)
    (answer,) = answers_to(tiler, png)
    assert (answer.error.status, answer.error.code) == (504, "time_out")


def test_an_answer_that_torchserve_would_not_send_is_refused(predictor, png, monkeypatch):
    (served,) = answers_to(predictor, png)
    monkeypatch.setattr(wire, "MAX_ANSWER_BYTES", len(served.body))
    assert answers_to(predictor, png)[0].body == served.body
    monkeypatch.setattr(wire, "MAX_ANSWER_BYTES", len(served.body) - 1)
    (answer,) = answers_to(predictor, png)
    assert (answer.error.status, answer.error.code) == (413, "answer_too_large")
    assert "score_threshold" in json.loads(answer.body)["error"]["message"]
    (less,) = answers_to(predictor, png, headers={"X-Mask": "none"})
    assert less.error is None


def test_the_limit_of_answers_is_that_of_torchserve():
    properties = Path(launch.__file__).with_name("config.properties").read_text()
    assert f"max_response_size={wire.MAX_ANSWER_BYTES}\n" in properties


def test_an_answer_says_that_the_tiles_had_too_many_instances(tiler, png, monkeypatch):
    monkeypatch.setattr(tiler, "_most_in_tiles", 40)
    (answer,) = answers_to(tiler, png, headers={"X-Score-Threshold": "0"})
    content = json.loads(answer.body)
    assert 0 < len(content["instances"]) <= 40
    assert "over 40 in tiles" in content["warnings"]["results_cut"]


@pytest.mark.parametrize(
    ("image", "fits"),
    [
        pytest.param(costly.jpeg_of_scans(250), 2, id="scans"),
        pytest.param(costly.jpeg_of_scans(250, 1_264), 2, id="scans-times-pixels"),
        pytest.param(costly.png_with_long_pixels(100), 2, id="pixels-after-the-last"),
    ],
)
def test_the_limits_of_cost_hold_for_all_images_of_a_request_together(predictor, png, image, fits):
    *costly_ones, usual = prepare_each(predictor, [image] * 8 + [png])
    assert [isinstance(each, Prepared) for each in costly_ones] == [True] * fits + [False] * (
        8 - fits
    )
    assert all(isinstance(each, CostlyImageError) for each in costly_ones[fits:])
    assert isinstance(usual, Prepared)


def test_a_damaged_image_pays_for_its_scans_too(predictor):
    damaged = costly.jpeg_of_scans(400).replace(b"\xff\xdb", b"\xff\xdc", 1)
    first, second = prepare_each(predictor, [damaged, costly.jpeg_of_scans(400)])
    assert isinstance(first, DamagedImageError)
    assert isinstance(second, CostlyImageError)


def test_an_empty_image_is_an_error_of_that_image(predictor, png):
    empty, image = prepare_each(predictor, [b"", png])
    assert isinstance(empty, EmptyRequestError)
    assert isinstance(image, Prepared)


def test_answers_keep_the_order_of_images_and_errors(predictor, picture):
    refusal = NotAnImageError("no")
    images = [picture, refusal, picture[:64, :64], picture]
    answers = found_in(predictor, *images)
    assert answers[1] is refusal
    assert [answer.image_hw for answer in answers if answer is not refusal] == [
        (120, 200),
        (64, 64),
        (120, 200),
    ]


def test_an_answer_does_not_depend_on_the_neighbours(predictor, picture):
    small = picture[:64, 20:84]
    (alone,) = found_in(predictor, small)
    beside = found_in(predictor, picture, small, picture)[1]
    # 1e-3: sums of other batch sizes round differently in float32.
    np.testing.assert_allclose(beside.polygons, alone.polygons, atol=1e-3)
    np.testing.assert_allclose(beside.scores, alone.scores, atol=1e-5)


def test_an_image_the_model_fails_on_harms_no_other():
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    first, second, third = predict_each(
        Picky(), [prepared(image) for image in (white, black, white)], StageClock()
    )
    assert (first, third) == (255, 255)
    assert isinstance(second, PredictionError)
    assert "RuntimeError" in str(second)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_the_smallest_images_get_an_answer(predictor, size):
    (answer,) = found_in(predictor, np.full((*size, 3), 90, np.uint8))
    assert answer.image_hw == size
