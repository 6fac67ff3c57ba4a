"""What clients get from a real TorchServe."""

import base64
import concurrent.futures
import json

import numpy as np
import pytest
import requests

from polarmask.inference import Predictor
from polarmask.masks import bitmap_from_rle, rles_from_polygons


@pytest.fixture
def post(server):
    def send(data=None, *, path="", headers=None, **options):
        return requests.post(
            server.predict_url + path, data=data, headers=headers, timeout=60, **options
        )

    return send


@pytest.fixture(scope="module")
def expected(random_model, picture):
    (instances,) = Predictor.load(random_model, threads=1).predict([picture])
    return instances


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", "application/json", None])
def test_an_image_is_answered_whatever_its_content_type_says(post, png, content_type):
    answer = post(png, headers={"Content-Type": content_type} if content_type else {})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["instances"]


def test_the_answer_is_what_the_model_finds(server, post, png, expected):
    answer = post(png, headers={"X-Score-Threshold": "0"})
    assert b"\n" not in answer.content
    content = answer.json()
    assert content["image"] == {"height": 120, "width": 200}
    assert content["model"] == {"name": "polarmask", "version": server.champion}
    assert len(content["instances"]) == len(expected) > 5
    assert len({instance["category_id"] for instance in content["instances"]}) == 2
    for index, instance in enumerate(content["instances"]):
        assert set(instance) == {"category_id", "category", "score", "bbox", "polygon"}
        assert instance["category_id"] == expected.category_ids[index]
        assert instance["category"] == expected.category_names[index]
        # Rounded to 2 and 4 decimals on the way.
        np.testing.assert_allclose(instance["polygon"], expected.polygons[index], atol=0.0051)
        np.testing.assert_allclose(instance["bbox"], expected.boxes_xywh[index], atol=0.0051)
        assert instance["score"] == pytest.approx(float(expected.scores[index]), abs=0.00006)


def test_rle_decodes_to_the_mask_of_the_polygon(post, png):
    drawn = post(png).json()["instances"]
    packed = post(png, headers={"X-Mask": "rle"}).json()["instances"]
    assert len(drawn) == len(packed) > 5
    for polygon, rle in zip(drawn, packed, strict=True):
        assert "polygon" not in rle
        assert rle["rle"]["size"] == [120, 200]
        vertices = np.asarray(polygon["polygon"], np.float32)
        reference = bitmap_from_rle(rles_from_polygons(vertices[None], (120, 200))[0])
        mask = bitmap_from_rle(rle["rle"])
        # Vertices are rounded to 0.01 px in the answer: a pixel on the outline may change side.
        assert np.count_nonzero(mask != reference) <= 0.01 * mask.size


def test_options_travel_in_headers_and_multipart_fields(post, png):
    headers = {"X-Score-Threshold": "0.4", "X-Max-Instances": "2", "X-Mask": "none"}
    by_header = post(png, headers=headers).json()["instances"]
    fields = {"score_threshold": "0.4", "max_instances": "2", "mask": "none"}
    by_field = post(fields, files={"image": ("a.png", png, "image/png")}).json()["instances"]
    assert by_header == by_field
    assert len(by_header) == 2
    assert all(set(each) == {"category_id", "category", "score", "bbox"} for each in by_header)
    assert all(each["score"] >= 0.4 for each in by_header)


def test_kserve_json_answers_a_list_in_which_images_fail_alone(server, png, jpeg):
    encoded = [base64.b64encode(data).decode() for data in (png, b"no image", jpeg)]
    answer = requests.post(
        f"{server.client.inference_url}/v1/models/polarmask:predict",
        json={"instances": [{"b64": text} for text in encoded], "parameters": {"mask": "none"}},
        timeout=60,
    )
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert first["instances"]
    assert third["instances"]
    assert second == {"error": {"code": "not_an_image", "message": "only JPEG and PNG are read"}}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(b"", {}, 400, "empty_request", id="empty"),
        pytest.param(b"\xff\xd8\xff\xe0half", {}, 400, "damaged_image", id="damaged"),
        pytest.param(b"hello", {}, 415, "not_an_image", id="text"),
        pytest.param(b"{oops", {}, 422, "bad_json", id="json"),
        pytest.param(None, {"X-Mask": "circle"}, 422, "bad_option", id="option"),
    ],
)
def test_mistakes_are_answered_with_a_reason(post, png, body, headers, status, code):
    answer = post(png if body is None else body, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]


def test_a_form_without_image_is_answered_with_a_reason(post):
    answer = post({"mask": "rle"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "empty_request")


def test_bad_neighbours_in_a_batch_harm_nobody(post, png, jpeg):
    bodies = [png, b"bad", jpeg, b"", png, b"\xff\xd8\xff", jpeg, png]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(post, bodies))
    assert [answer.status_code for answer in answers] == [200, 415, 200, 400, 200, 400, 200, 200]
    of_png = [json.dumps(answers[index].json()) for index in (0, 4, 7)]
    assert len(set(of_png)) == 1


def test_metrics_count_what_was_found_and_refused(server, post, png):
    post(png)
    post(b"hello")
    text = requests.get(server.metrics_url, timeout=10).text
    assert 'polarmask_stage_seconds_bucket{stage="predict"' in text
    assert 'polarmask_refused_requests{code="not_an_image"' in text
    assert "polarmask_instances{" in text


def test_nothing_listens_beyond_this_machine(server):
    import psutil

    listening = {
        connection.laddr.ip
        for connection in psutil.Process(server.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert listening


def test_no_archive_is_fetched_from_elsewhere(server, archive):
    for url in (archive.path.as_uri(), str(archive.path), "https://127.0.0.1:1/a.mar"):
        for door in ("models", "workflows"):
            answer = requests.post(
                f"{server.client.management_url}/{door}", params={"url": url}, timeout=30
            )
            assert answer.status_code >= 400
    assert server.client.versions() == (server.champion,)
