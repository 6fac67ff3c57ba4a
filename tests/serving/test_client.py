"""The client gives what the model finds, retries where that helps, and reports what is wrong."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from polarmask.cli import main
from polarmask.geometry.masks import bitmap_from_rle
from polarmask.inference.instances import Instances
from polarmask.inference.predictor import Predictor
from polarmask_serving.answer.image_bytes import decode_image
from polarmask_serving.client import (
    Client,
    ClientError,
    FaultyAnswerError,
    RefusedError,
    UnauthorizedError,
    UnavailableError,
)
from polarmask_serving.client.read_answer import read_instances
from scripted_server import FOUND, ScriptedServer

OVERLOADED = (503, {}, {"error": {"code": "overloaded", "message": "the queue is full"}})


@pytest.fixture
def scripted():
    with ScriptedServer().running() as server:
        yield server


@pytest.fixture
def client(server):
    with Client(server.predict_url) as client:
        yield client


def test_a_prediction_is_what_the_model_finds(client, server, random_model, picture, png, tmp_path):
    (expected,) = Predictor.load(random_model, threads=1).predict([picture])
    (tmp_path / "a.png").write_bytes(png)
    for image in (png, tmp_path / "a.png", picture):
        found = client.predict(image, score_threshold=0, return_rays=True)
        assert found.image_hw == (120, 200)
        assert found.served_by == ("polarmask", server.version)
        assert found.category_names == expected.category_names
        assert found.category_ids.tolist() == expected.category_ids.tolist()
        # Rounded to 2 and 4 decimals on the way.
        np.testing.assert_allclose(found.polygons, expected.polygons, atol=0.0051)
        np.testing.assert_allclose(found.boxes_xywh, expected.boxes_xywh, atol=0.0051)
        np.testing.assert_allclose(found.scores, expected.scores, atol=0.00006)
        np.testing.assert_allclose(found.centers, expected.centers, atol=0.0051)
        np.testing.assert_allclose(found.ray_lengths, expected.ray_lengths, atol=0.0051)


def test_a_grey_array_is_an_image(client, picture):
    assert client.predict(picture[:, :, 0]).image_hw == (120, 200)


def test_masks_are_those_of_the_server(client, server, png):
    found = client.predict(png, score_threshold=0)
    headers = {"X-Mask": "rle", "X-Score-Threshold": "0"}
    answer = requests.post(server.predict_url, data=png, headers=headers, timeout=60).json()
    assert found.masks().shape == (len(answer["instances"]), 120, 200)
    for row, (mask, entry) in enumerate(zip(found.masks(), answer["instances"], strict=True)):
        for y, x in np.argwhere(mask != bitmap_from_rle(entry["rle"])):
            to_outline = cv2.pointPolygonTest(found.polygons[row], (x + 0.5, y + 0.5), True)
            # Vertices were rounded on the way, and COCO's rasteriser has steps of 1/5 pixel.
            assert abs(to_outline) <= 0.25


def test_an_answer_becomes_what_a_model_returns(picture):
    polygons = [[[4, 1], [4, 4], [1, 4], [1, 1]], [[8, 6], [8, 8], [6, 8], [6, 6]]]
    entry = {"category_id": 1, "category": "cell", "score": 0.5, "bbox": [0, 0, 1, 1]}
    answer = FOUND | {
        "instances": [entry | {"polygon": polygons[0], "polygons": polygons}],
        "default_score_threshold": 0.4,
        "warnings": {"shrunk": "objects are lost"},
    }
    found = read_instances(answer, image=picture[:8, :8, 0])
    assert found.masks()[0].sum() == 9 + 4
    assert found.plot().shape[2] == 3
    assert (found.min_score, found.warnings) == (0.4, answer["warnings"])
    assert np.isnan(found.centers).all()
    assert found.ray_lengths.shape == (1, 0)
    assert read_instances(answer, min_score=0.1).min_score == 0.1


def test_tiles_can_be_declined(scripted):
    Client(scripted.url).predict(b"image", tile="none")
    Client(scripted.url).predict(b"image")
    assert [headers.get("X-Tile") for _, headers in scripted.seen] == ["none", None]


def test_options_choose_instances(client, png):
    everything = client.predict(png, score_threshold=0)
    only = client.predict(png, categories=["debris"], max_instances=2)
    assert set(everything.category_names) == {"nucleus", "debris"}
    assert only.category_names == ("debris", "debris")
    assert np.isnan(only.centers).all()
    assert only.ray_lengths.shape == (2, 0)


def test_a_picture_without_instances_has_empty_arrays(client, png):
    found = client.predict(png, score_threshold=1, return_rays=True)
    assert len(found) == 0
    assert found.masks().shape == (0, 120, 200)
    assert found.centers.shape == (0, 2)


def test_a_refusal_has_the_server_s_code_and_words(client, png):
    with pytest.raises(RefusedError, match="damaged_image") as caught:
        client.predict(png[: len(png) // 2])
    assert (caught.value.status, caught.value.code) == (400, "damaged_image")


def test_a_batch_keeps_its_order_and_an_image_fails_alone(client, picture, png):
    images = [picture[: 20 + 5 * number] for number in range(12)]
    images[5] = png[:100]
    answers = list(client.predict_batch(images, max_instances=1))
    heights = [each.image_hw[0] if isinstance(each, Instances) else None for each in answers]
    assert heights == [20, 25, 30, 35, 40, None, 50, 55, 60, 65, 70, 75]
    assert isinstance(answers[5], RefusedError)


def test_a_batch_takes_images_as_they_are_needed(scripted):
    taken = []

    def images():
        for number in range(100):
            taken.append(number)
            yield b"image"

    answers = Client(scripted.url, connections=2).predict_batch(images())
    next(answers)
    assert len(taken) == 4
    answers.close()


@pytest.mark.parametrize("trouble", [OVERLOADED, "reset", (502, {}, b"")])
def test_what_may_pass_is_tried_again(scripted, trouble):
    scripted.script = [trouble, trouble]
    assert len(Client(scripted.url).predict(b"image")) == 0
    assert len(scripted.seen) == 3


def test_tries_end_and_the_last_reason_is_raised(scripted):
    scripted.script = [OVERLOADED] * 9
    with pytest.raises(UnavailableError, match="503 overloaded: the queue is full") as caught:
        Client(scripted.url, retries=1).predict(b"image")
    assert caught.value.code == "overloaded"
    assert len(scripted.seen) == 2


def test_the_server_says_when_to_come_back(scripted):
    scripted.script = [(503, {"Retry-After": "1"}, b"")]
    start = time.monotonic()
    Client(scripted.url).predict(b"image")
    assert time.monotonic() - start >= 1
    scripted.script = [(503, {"Retry-After": "3600"}, b"maintenance")]
    with pytest.raises(UnavailableError, match="maintenance"):
        Client(scripted.url).predict(b"image")


@pytest.mark.parametrize("trouble", ["stall", "drip"])
def test_the_timeout_is_that_of_the_whole_prediction(scripted, trouble):
    scripted.script = [trouble] * 9
    start = time.monotonic()
    with (
        Client(scripted.url, timeout=0.3) as client,
        pytest.raises(UnavailableError, match=r"no whole answer within 0\.3 s"),
    ):
        client.predict(b"image")
    assert time.monotonic() - start < 5  # a slow machine is no failure
    assert len(scripted.seen) == 1
    scripted.script = []
    assert len(client.predict(b"image")) == 0  # on another connection


def test_tries_end_with_the_timeout(scripted):
    scripted.script = [(503, {"Retry-After": "9"}, b"busy")] * 9
    with pytest.raises(UnavailableError, match="503: busy"):
        Client(scripted.url, timeout=5).predict(b"image")
    assert len(scripted.seen) == 1


@pytest.mark.parametrize("kind", [str, Path, bytes, bytearray, memoryview])
def test_an_image_may_be_a_path_or_bytes_of_any_kind(scripted, tmp_path, kind):
    (tmp_path / "a.png").write_bytes(b"content")
    image = tmp_path / "a.png" if kind in (str, Path) else b"content"
    Client(scripted.url).predict(kind(image))
    assert scripted.bodies == [b"content"]


@pytest.mark.parametrize(
    ("categories", "sent"),
    [
        (np.array([3, 1]), "[3, 1]"),
        ([np.int64(3), "cell"], '[3, "cell"]'),
        ("cell", '["cell"]'),
        (np.uint8(7), "[7]"),
        ([], "[]"),
    ],
)
def test_categories_are_names_or_whole_numbers_of_any_kind(scripted, categories, sent):
    Client(scripted.url).predict(b"image", categories=categories)
    assert scripted.seen[-1][1]["X-Categories"] == sent


def test_a_category_of_another_kind_is_refused(scripted):
    with pytest.raises(TypeError):
        Client(scripted.url).predict(b"image", categories=[1.5])
    assert not scripted.seen


def test_a_password_in_the_address_is_sent_and_never_shown(scripted):
    url = scripted.url.replace("://", "://me:p%40ss@")
    client = Client(url)
    client.predict(b"image")
    assert scripted.seen[-1][1]["Authorization"] == "Basic bWU6cEBzcw=="  # me:p@ss
    assert "p%40ss" not in client.url
    scripted.script = [(500, {}, b""), (200, {}, b"<html>"), "reset", "stall"]
    for _ in range(4):
        with pytest.raises(ClientError) as caught:
            Client(url, retries=0, timeout=0.3).predict(b"image")
        assert "ss@" not in str(caught.value)
        assert "p%40ss" not in repr(caught.getrepr(style="native"))


@pytest.mark.parametrize(
    "url",
    ["ftp://me:secret@host/a", "http://me:sec/ret@host/a", "http://me:secret@", "me:secret@host"],
)
def test_an_address_that_is_refused_shows_no_password(url):
    with pytest.raises(ValueError, match="is no http address") as caught:
        Client(url)
    assert "ret" not in str(caught.value)


def test_a_token_in_the_query_is_not_shown():
    with pytest.raises(UnavailableError) as caught:
        Client("http://127.0.0.1:9/predictions/a?token=secret", retries=0).predict(b"image")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "kind", "expected_text"),
    [
        ((401, {}, {"error": {"code": "unauthorized", "message": "x"}}), UnauthorizedError, "401"),
        ((413, {}, b""), RefusedError, "Request Entity Too Large|Content Too Large"),
        ((500, {}, b"<html>oh</html>"), FaultyAnswerError, "<html>oh"),
        ((504, {}, b""), UnavailableError, "504"),
        ((200, {}, b"<html>"), FaultyAnswerError, "something else than a prediction"),
        ((200, {}, []), FaultyAnswerError, "something else than a prediction"),
        ((200, {}, {"instances": 3}), FaultyAnswerError, "something else than a prediction"),
    ],
)
def test_what_does_not_pass_is_raised_without_a_retry(scripted, answer, kind, expected_text):
    scripted.script = [answer]
    with pytest.raises(kind, match=expected_text) as caught:
        Client(scripted.url).predict(b"image")
    assert caught.value.status == answer[0]
    assert len(scripted.seen) == 1


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:9/predictions") as caught:
        Client("http://127.0.0.1:9/predictions/polarmask", retries=0).predict(b"image")
    assert caught.value.status is None


def test_a_token_travels_and_no_netrc_takes_its_place(scripted, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for token, sent in (("secret", "Bearer secret"), (None, None)):
        Client(scripted.url, token=token).predict(b"image")
        assert scripted.seen[-1][1].get("Authorization") == sent


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(scripted, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert len(Client(scripted.url, retries=0).predict(b"image")) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "runs/model"},
        {"url": "http://"},
        {"token": ""},
        {"token": "a\nb"},
        {"retries": -1},
        {"connections": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"url": "http://a:b@host/", "token": "c"},
    ],
)
def test_arguments_that_can_t_work_are_refused(arguments):
    with pytest.raises(ValueError, match=r"address|token|retries"):
        Client(**{"url": "http://127.0.0.1:1/predictions/a"} | arguments)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_sixteen_bit_pixels_arrive_as_they_are(scripted, shape):
    deep = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    Client(scripted.url).predict(deep)
    expected = deep if deep.ndim == 3 else np.repeat(deep[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(scripted.bodies[-1]), expected, strict=True)


def test_an_array_that_is_no_image_is_refused(scripted):
    for array in (
        np.zeros((2, 2, 4), np.uint8),
        np.zeros((2, 2)),
        np.zeros(3, np.uint8),
        np.zeros((0, 5), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            Client(scripted.url).predict(array)


def test_the_client_brings_no_torch(scripted, tmp_path):
    code = f"""
import sys
import polarmask_serving.client
assert not {{'torch', 'cv2', 'pycocotools'}} & {{*sys.modules}}
found = polarmask_serving.client.Client({scripted.url!r}).predict(b"image")
found.masks(), found.labels(), found.save({str(tmp_path / "a.csv")!r})
assert 'torch' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "a.csv").read_text().startswith("object,category")


def test_every_error_of_the_client_is_one():
    kinds = (RefusedError, UnauthorizedError, UnavailableError, FaultyAnswerError)
    assert all(issubclass(kind, ClientError) for kind in kinds)


def test_predict_asks_a_server_with_the_token_of_a_file(scripted, png, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "token").write_text("secret\n")
    flags = ["--out", str(tmp_path / "found.json"), str(tmp_path / "a.png")]
    asked = ["predict", "--url", scripted.url, "--token-file", str(tmp_path / "token")]
    assert main([*asked, *flags]) == 0
    (_, headers) = scripted.seen[-1]
    assert headers["Authorization"] == "Bearer secret"
    assert (headers.get("X-Score-Threshold"), headers["X-Return-Rays"]) == (None, "true")
    assert main([*asked, "--score", "0.5", "--tile", "none", *flags]) == 0
    (_, headers) = scripted.seen[-1]
    assert (headers["X-Score-Threshold"], headers["X-Tile"]) == ("0.5", "none")
    assert "0 instances" in capsys.readouterr().out
    for wrong in (["--url", "nowhere"], ["--url", scripted.url, "--threads", "1"]):
        assert main(["predict", *wrong, *flags]) == 2
    assert main(["predict", "--model", "m", "--token-file", "t", *flags]) == 2
