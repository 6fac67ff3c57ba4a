"""What clients get from a real TorchServe."""

import base64
import collections
import concurrent.futures
import contextlib
import json
import re
import time

import numpy as np
import pytest
import requests

from polarmask.geometry.masks import bitmap_from_rle, rles_from_polygons
from polarmask.inference.predictor import Predictor
from polarmask_serving.answer.batch import STAGES


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
def test_an_image_is_answered_whatever_its_content_type(post, png, content_type):
    answer = post(png, headers={"Content-Type": content_type} if content_type else {})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["instances"]


def test_the_answer_is_what_the_model_finds(server, post, png, expected):
    answer = post(png, headers={"X-Score-Threshold": "0"})
    assert b"\n" not in answer.content
    content = answer.json()
    assert content["image"] == {"height": 120, "width": 200}
    assert content["model"] == {"name": "polarmask", "version": server.version}
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


def test_options_travel_in_headers(post, png):
    headers = {"X-Score-Threshold": "0.4", "X-Max-Instances": "2", "X-Mask": "none"}
    found = post(png, headers=headers).json()["instances"]
    assert len(found) == 2
    assert all(set(each) == {"category_id", "category", "score", "bbox"} for each in found)
    assert all(each["score"] >= 0.4 for each in found)


def test_kserve_json_answers_a_list_in_which_images_fail_alone(server, png, jpeg):
    encoded = [base64.b64encode(data).decode() for data in (png, b"no image", jpeg)]
    answer = requests.post(
        f"{server.inference_url}/v1/models/polarmask:predict",
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
        pytest.param(b"{oops", {}, 400, "bad_json", id="json"),
        pytest.param(None, {"X-Mask": "circle"}, 400, "bad_option", id="option"),
    ],
)
def test_mistakes_are_answered_with_a_reason(post, png, body, headers, status, code):
    answer = post(png if body is None else body, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["message"]


def test_bad_neighbours_in_a_batch_harm_nobody(post, png, jpeg):
    bodies = [png, b"bad", jpeg, b"", png, b"\xff\xd8\xff", jpeg, png]
    with concurrent.futures.ThreadPoolExecutor(len(bodies)) as pool:
        answers = list(pool.map(post, bodies))
    assert [answer.status_code for answer in answers] == [200, 415, 200, 400, 200, 400, 200, 200]
    of_png = [json.dumps(answers[index].json()) for index in (0, 4, 7)]
    assert len(set(of_png)) == 1


def test_json_with_one_image_is_answered_like_its_bytes(post, png):
    body = {"image": base64.b64encode(png).decode(), "parameters": {"score_threshold": 0.5}}
    assert post(json.dumps(body)).json() == post(png, headers={"X-Score-Threshold": "0.5"}).json()


def test_categories_and_rays_are_answered_as_asked(post, png, expected):
    headers = {"X-Categories": "debris", "X-Return-Rays": "true", "X-Score-Threshold": "0"}
    found = post(png, headers=headers).json()["instances"]
    rows = np.flatnonzero(expected.category_ids == 7)
    assert len(found) == len(rows) > 0
    for instance, row in zip(found, rows, strict=True):
        assert instance["category"] == "debris"
        np.testing.assert_allclose(instance["center"], expected.centers[row], atol=0.0051)
        np.testing.assert_allclose(instance["rays"], expected.ray_lengths[row], atol=0.0051)


def test_an_id_that_is_none_gives_way_to_the_one_in_the_answer(server, post, png):
    answer = post(png, headers={"X-REQUEST-ID": "a b"})
    assert wait_for_line(server, answer.headers["x-request-id"])["status"] == 200


def test_each_request_is_a_line_of_json_in_the_log(server, post, png):
    content = {"instances": [{"b64": base64.b64encode(data).decode()} for data in (png, b"no")]}
    post(json.dumps(content), headers={"X-Request-Id": "in-the-log"})
    post(b"hello", headers={"X-Request-Id": "refused-in-the-log"})
    served = wait_for_line(server, "in-the-log")
    assert (served["status"], served["code"], served["version"]) == (200, None, server.version)
    assert served["images"][0].items() >= {"height": 120, "width": 200}.items()
    assert served["images"][1] == {"code": "not_an_image"}
    assert set(served["seconds"]) == set(STAGES)
    assert served["bytes"] == len(json.dumps(content))
    refused = wait_for_line(server, "refused-in-the-log")
    assert (refused["status"], refused["code"]) == (415, "not_an_image")


def wait_for_line(server, request_id):
    for _ in range(50):
        for line in server.log.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("request", {}).get("request_id") == request_id:
                    return entry["request"]
        time.sleep(0.1)
    raise AssertionError(f"no line about {request_id}")


def test_metrics_count_what_was_found_and_refused(server, post, png):
    before = metrics_of(server)
    found = len(post(png, headers={"X-Score-Threshold": "0"}).json()["instances"])
    post(b"hello")
    for _ in range(50):
        time.sleep(0.1)
        after = metrics_of(server)
        if (
            after["polarmask_refused_total", "not_an_image"]
            > (before["polarmask_refused_total", "not_an_image"])
        ):
            break
    grown = {key: after[key] - before[key] for key in after}
    assert grown["polarmask_refused_total", "not_an_image"] == 1
    assert grown["polarmask_instances_count", ""] == 1
    assert grown["polarmask_instances_sum", ""] == found > 5
    assert grown["polarmask_instances_bucket", "5"] == 0
    assert grown["polarmask_instances_bucket", "+Inf"] == 1
    assert grown["polarmask_score_count", ""] == found
    scores = [grown["polarmask_score_bucket", bound] for bound in ("0.1", "0.5", "0.9", "+Inf")]
    assert scores == sorted(scores)
    assert scores[-1] == found
    for stage in STAGES:
        assert grown["polarmask_stage_seconds_count", stage] == 2


def metrics_of(server):
    """Return the values of our metrics by name and the one label that distinguishes them."""
    text = requests.get(server.metrics_url, timeout=10).text
    found = collections.defaultdict(float)
    for line in re.findall(
        r"^(polarmask_\w+)\{(?:(?:stage|code|le)=\"([^\"]*)\",)?.* (\S+)$", text, re.M
    ):
        found[line[0], line[1]] += float(line[2])
    return found


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
                f"{server.management_url}/{door}", params={"url": url}, timeout=30
            )
            assert answer.status_code >= 400
    described = requests.get(f"{server.management_url}/models/polarmask/all", timeout=10).json()
    assert [each["modelVersion"] for each in described] == [server.version]
