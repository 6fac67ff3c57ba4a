import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from costly_requests import FORM_HEADERS, deep_json, form_of_fields, wide_json
from polarmask.geometry.masks import bitmap_from_rle, rles_from_polygons
from polarmask.inference.instances import Instances
from polarmask_serving import errors
from polarmask_serving.answer import wire
from polarmask_serving.answer.options import Options, read_options

MODEL = {"name": "polarmask", "version": "1"}
CATEGORIES = {3: "nucleus", 7: "debris", 12: "7", 20: "a, b"}


def read(fields, headers=None):
    return wire.read_request(fields, headers or {}, CATEGORIES)


def squares(count=3, image_hw=(50, 80)):
    """Instances with falling scores 0.9, 0.8, ..., each a 10 px square."""
    corner = np.array([[10, 0], [10, 10], [0, 10], [0, 0]], np.float32)
    polygons = np.stack([corner + 12 * index + 0.123 for index in range(count)])
    low = polygons.min(axis=1)
    return Instances(
        image_hw=image_hw,
        polygons=polygons,
        boxes_xywh=np.concatenate([low, polygons.max(axis=1) - low], axis=1),
        scores=np.linspace(0.9, 0.9 - 0.1 * (count - 1), count, dtype=np.float32),
        category_ids=np.array([7, 3, 7][:count], np.int64),
        category_names=("debris", "nucleus", "debris")[:count],
        centers=polygons.mean(axis=1),
        ray_lengths=np.full((count, 4), 7, np.float32),
    )


def answer_to(request, *outcomes):
    error, body = wire.write_answer(request, outcomes, MODEL, default_score=0.4)
    return error, json.loads(body)


# Requests


def test_options_come_from_headers_in_any_case(png):
    headers = {"x-score-THRESHOLD": "0.5", "X-Max-Instances": "3", "X-Mask": "rle", "Host": "x"}
    request = read({"body": png}, headers)
    assert request.options == Options(score_threshold=0.5, max_instances=3, mask="rle")
    assert not request.as_list


def form(*fields, end=b"--B--\r\n"):
    parts = [
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % pair
        for pair in fields
    ]
    return b"".join(parts) + end


def read_form(body, kind="multipart/form-data; boundary=B", **headers):
    return read({"body": body}, {"X-Content-Type": kind, **headers})


def test_multipart_fields_win_over_headers(png):
    fields = form((b"image", png), (b"mask", b"none"))
    request = read_form(b"what comes before\r\n" + fields + b"and after", **{"X-Mask": "rle"})
    assert request.options.mask == "none"
    assert request.images == (png,)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ('multipart/form-data; boundary="B"', b"Content-Disposition: form-data; name=image"),
        (
            "Multipart/Form-Data;BOUNDARY=B",
            b'content-type: image/png\r\ncontent-DISPOSITION:form-data;name="image"',
        ),
    ],
)
def test_forms_are_read_in_every_spelling(png, kind, head):
    body = b"--B\r\n" + head + b"\r\n\r\n" + png + b"\r\n--B--"
    assert read_form(body, kind).images == (png,)


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        pytest.param(form_of_fields(33), FORM_HEADERS["Content-Type"], "32 fields", id="33-fields"),
        pytest.param(form_of_fields(400_000), FORM_HEADERS["Content-Type"], "32 fields", id="many"),
        pytest.param(
            form((b"image", b"a")), "multipart/form-data", "no boundary", id="no-boundary"
        ),
        pytest.param(form((b"image", b"a"), end=b""), None, "breaks off", id="breaks-off"),
        pytest.param(b"", None, "breaks off", id="empty"),
        pytest.param(form((b"image", b"a"), (b"image", b"b")), None, "'image' twice", id="images"),
        pytest.param(form((b"mask", b"a"), (b"mask", b"b")), None, "'mask' twice", id="options"),
        pytest.param(form((b"a" * 5_000, b"b")), None, "4096 bytes", id="long-header"),
        pytest.param(b"--B\r\n\r\na\r\n--B--", None, "Content-Disposition", id="no-header"),
        pytest.param(
            b"--B\r\nContent-Disposition: form-data\r\n\r\na\r\n--B--", None, "name=", id="no-name"
        ),
    ],
)
def test_forms_that_can_not_be_answered_are_refused_in_words(body, kind, reason):
    with pytest.raises(errors.BadFormError, match=reason):
        read_form(body, kind or "multipart/form-data; boundary=B")


def test_an_option_that_is_overridden_has_to_make_sense_too(png):
    with pytest.raises(errors.BadOptionError, match="circle"):
        read_form(form((b"image", png), (b"mask", b"rle")), **{"X-Mask": "circle"})
    with pytest.raises(errors.BadOptionError, match="'elephant', which is none"):
        read_form(form((b"image", png), (b"categories", b"[]")), **{"X-Categories": "elephant"})


def test_kserve_json_holds_several_images_and_parameters(png, jpeg):
    content = {
        "instances": [{"b64": base64.b64encode(data).decode()} for data in (png, jpeg, b"no")],
        "parameters": {"max_instances": 2},
    }
    request = read({"body": b" " + json.dumps(content).encode()}, {"X-Mask": "none"})
    assert request.as_list
    assert request.options == Options(max_instances=2, mask="none")
    assert request.images == (png, jpeg, b"no")


def test_plain_json_holds_one_image_and_parameters(png):
    content = {"image": base64.b64encode(png).decode(), "parameters": {"return_rays": True}}
    request = read({"body": bytearray(json.dumps(content).encode())})
    assert not request.as_list
    assert request.options == Options(return_rays=True)
    assert request.images == (png,)


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("nucleus", (3,)),
        ("debris, 3", (7, 3)),
        (b"nucleus,nucleus", (3,)),
        ([3, "debris"], (3, 7)),
        ("7", (12,)),  # a name first
        ([7], (7,)),  # a number is an id
        ('["a, b"]', (20,)),
    ],
)
def test_categories_are_given_by_name_or_id(value, ids):
    assert read_options([{"categories": value}], CATEGORIES).categories == ids


@pytest.mark.parametrize("value", ["cell", [99], "nucleus,cell", ["3.0"]])
def test_an_unknown_category_is_answered_with_the_known_ones(value):
    with pytest.raises(errors.BadOptionError, match=r"the model knows nucleus \(3\), debris"):
        read_options([{"categories": value}], CATEGORIES)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tile", "512"),
        ("score_threshold", "high"),
        ("score_threshold", "1.1"),
        ("score_threshold", "nan"),
        ("score_threshold", True),
        ("max_instances", "0"),
        ("max_instances", "2.5"),
        ("max_instances", None),
        ("mask", "circle"),
        ("max_instances", 1e300),
        ("max_instances", "1_0"),
        ("max_instances", "٣"),
        ("mask", b"\xff"),
        ("mask", ["rle"]),
        ("return_rays", "maybe"),
        ("return_rays", 1),
        ("categories", ""),
        ("categories", []),
        ("categories", [True]),
        ("categories", [[3]]),
        ("categories", "[3"),
        ("categories", "[" * 5000),
        ("maks", "rle"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, value):
    with pytest.raises(errors.BadOptionError, match=name):
        read_options([{name: value}], CATEGORIES)


@pytest.mark.parametrize(
    "body",
    [
        b"{oops",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b'{"instances": []}',
        b'{"instances": {"b64": "aaaa"}}',
        b'{"image": "***"}',
        b'{"instances": [{"b64": "aaaa"}], "parameters": 3}',
        b'{"instances": [{"b64": "aaaa"}], "image": "aaaa"}',
        b'{"image": "aaaa", "params": {}}',
        b'{"image": {"b64": "aaaa"}}',
        '{"image": "ä"}'.encode(),
        b'{"image": "aaaa", "parameters": {"max_instances": ' + b"9" * 5000 + b"}}",
        json.dumps({"instances": [{"b64": "aaaa"}] * 9}).encode(),
        b"\xef\xbb\xbf{oops",
    ],
)
def test_json_of_another_form_is_refused(body):
    with pytest.raises(errors.BadJsonError):
        read({"body": body})


@pytest.mark.parametrize(
    "instance", [{"b64": "***"}, "aaaa", {"b64": 5}, {"b64": "aaaa", "mask": "rle"}, {}]
)
def test_an_instance_that_can_not_be_read_fails_alone(instance):
    content = {"instances": [{"b64": "aaaa"}, instance, {"b64": "aaaa"}]}
    first, second, third = read({"body": json.dumps(content).encode()}).images
    assert first == third == base64.b64decode("aaaa")
    assert isinstance(second, errors.BadJsonError)
    assert '{"b64": "BASE64"}' in str(second)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_is_read_with_any_mark_of_unicode(encoding):
    body = ' {"image": "aaaa"}'.encode(encoding)
    assert read({"body": body}).images == (base64.b64decode("aaaa"),)


@pytest.mark.parametrize("body", [wide_json(20_000), deep_json(20_000), deep_json(5_000)])
def test_json_that_would_fill_the_memory_is_refused_before_it_is_read(body):
    with pytest.raises(errors.BadJsonError):
        read({"body": body})


@pytest.mark.parametrize("body", [form(), form((b"mask", b"rle")), form((b"picture", b"x"))])
def test_forms_without_image_are_refused(body):
    with pytest.raises(errors.EmptyRequestError):
        read_form(body)


# Answers


def test_an_answer_names_what_was_found_in_pixels_of_the_image():
    error, answer = answer_to(wire.ParsedRequest(images=(None,)), squares(2))
    assert error is None
    assert answer == {
        "image": {"height": 50, "width": 80},
        "model": MODEL,
        "default_score_threshold": 0.4,
        "instances": [
            {
                "category_id": 7,
                "category": "debris",
                "score": 0.9,
                "bbox": [0.12, 0.12, 10.0, 10.0],
                "polygon": [[10.12, 0.12], [10.12, 10.12], [0.12, 10.12], [0.12, 0.12]],
            },
            {
                "category_id": 3,
                "category": "nucleus",
                "score": 0.8,
                "bbox": [12.12, 12.12, 10.0, 10.0],
                "polygon": [[22.12, 12.12], [22.12, 22.12], [12.12, 22.12], [12.12, 12.12]],
            },
        ],
    }


def test_an_instance_in_several_parts_lists_all_its_outlines():
    """Clients that know `polygon` alone still see the best part."""
    part = squares().polygons[2:]
    found = replace(squares(count=2), further_parts={1: part})
    _, answer = answer_to(wire.ParsedRequest(images=(None,)), found)
    whole, parted = answer["instances"]
    assert "polygons" not in whole
    assert parted["polygons"][0] == parted["polygon"]
    np.testing.assert_allclose(parted["polygons"][1], part[0], atol=0.0051)
    rle = Options(mask="rle")
    _, answer = answer_to(wire.ParsedRequest(images=(None,), options=rle), found)
    area = bitmap_from_rle(answer["instances"][1]["rle"]).sum()
    assert area == 2 * bitmap_from_rle(answer["instances"][0]["rle"]).sum()


def test_rle_stands_in_for_the_polygon_when_asked():
    options = Options(mask="rle")
    _, answer = answer_to(wire.ParsedRequest(images=(None,), options=options), squares())
    assert "polygon" not in answer["instances"][0]
    masks = [instance["rle"] for instance in answer["instances"]]
    assert masks == rles_from_polygons(squares().polygons, (50, 80))


def test_answers_can_leave_masks_out():
    options = Options(mask="none")
    _, answer = answer_to(wire.ParsedRequest(images=(None,), options=options), squares())
    assert set(answer["instances"][0]) == {"category_id", "category", "score", "bbox"}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (Options(), 3),
        (Options(max_instances=1), 1),
        (Options(categories=(7,)), 2),
        (Options(categories=(7, 3), max_instances=2), 2),
        (Options(categories=(20,)), 0),
    ],
)
def test_options_limit_what_is_shown(options, count):
    _, answer = answer_to(wire.ParsedRequest(images=(None,), options=options), squares())
    assert len(answer["instances"]) == count


def test_an_answer_says_what_may_be_missing():
    found = replace(squares(), warnings={"shrunk": "objects are lost"})
    _, answer = answer_to(wire.ParsedRequest(images=(None,)), found)
    assert answer["warnings"] == {"shrunk": "objects are lost"}


def test_rays_are_shown_when_asked():
    options = Options(return_rays=True, mask="none")
    _, answer = answer_to(wire.ParsedRequest(images=(None,), options=options), squares())
    first = answer["instances"][0]
    assert (first["center"], first["rays"]) == ([5.12, 5.12], [7.0] * 4)


def test_in_a_list_an_image_fails_alone():
    error, answer = answer_to(
        wire.ParsedRequest(images=(None, None), as_list=True),
        errors.DamagedImageError("the image breaks off"),
        squares(),
    )
    assert error is None
    assert answer["predictions"][0] == {
        "error": {"code": "damaged_image", "message": "the image breaks off"}
    }
    assert len(answer["predictions"][1]["instances"]) == 3


def test_the_status_is_an_error_if_no_image_has_an_answer():
    refusal = errors.NotAnImageError("only JPEG and PNG are read")
    for as_list in (False, True):
        error, answer = answer_to(wire.ParsedRequest(images=(refusal,), as_list=as_list), refusal)
        assert (error.status, error.phrase) == (415, "Unsupported Media Type")
        assert answer["error"]["code"] == "not_an_image"


def test_every_answer_error_has_a_status_and_an_ascii_phrase():
    leaves = [
        errors.PredictionError,
        errors.TimeOutError,
        *errors.RequestError.__subclasses__(),
    ]
    assert sorted(leaf.status for leaf in leaves) == [*[400] * 6, 413, 413, 413, 415, 500, 504]
    assert all(leaf("x").phrase.isascii() for leaf in leaves)
