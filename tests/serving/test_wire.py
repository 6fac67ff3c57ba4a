import base64
import io
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from polarmask.inference import Instances
from polarmask.masks import bitmap_from_rle, rles_from_polygons
from polarmask_serving import errors, wire

MODEL = {"name": "polarmask", "version": "1"}


def pillow(image, form, **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises more pixels than its few bytes hold."""

    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


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
    error, body = wire.write_answer(request, outcomes, MODEL)
    return error, json.loads(body)


# Images


def test_a_png_comes_out_as_it_went_in(picture, png):
    np.testing.assert_array_equal(wire.decode_image(png), picture)


def test_colours_of_a_jpeg_keep_their_order(picture, jpeg):
    # JPEG rounds; quarters are 60 px of one colour, so their middles are near the original.
    np.testing.assert_allclose(wire.decode_image(jpeg)[30, 50], picture[30, 50], atol=8)


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: show the file a quarter turn clockwise
    for form in ("JPEG", "PNG"):
        image = wire.decode_image(pillow(Image.fromarray(picture), form, exif=exif))
        assert image.shape == (200, 120, 3)
        np.testing.assert_allclose(image[50, 90], picture[30, 50], atol=8)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_png_modes_become_rgb(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(wire.decode_image(pillow(image, "PNG")), expected)


def test_cmyk_jpeg_becomes_rgb(picture):
    image = wire.decode_image(pillow(Image.fromarray(picture).convert("CMYK"), "JPEG"))
    np.testing.assert_allclose(image[30, 50], picture[30, 50], atol=12)


def test_sixteen_bit_grey_keeps_its_upper_byte():
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    image = wire.decode_image(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(image, np.repeat((grey >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", errors.EmptyRequestError, id="empty"),
        pytest.param(b"hello", errors.NotAnImageError, id="text"),
        pytest.param(b"GIF89a" + bytes(20), errors.NotAnImageError, id="gif"),
        pytest.param("text", errors.NotAnImageError, id="not-bytes"),
        pytest.param(b"\xff\xd8\xff\xe0", errors.DamagedImageError, id="jpeg-without-header"),
        pytest.param(b"\x89PNG\r\n\x1a\n", errors.DamagedImageError, id="png-without-header"),
        pytest.param(png_of_size(0, 5), errors.DamagedImageError, id="no-columns"),
        pytest.param(png_of_size(100, 100), errors.DamagedImageError, id="header-only"),
        pytest.param(png_of_size(5001, 5000), errors.ImageTooLargeError, id="25-megapixels"),
        pytest.param(png_of_size(10_001, 1), errors.ImageTooLargeError, id="long"),
        pytest.param(png_of_size(10_000, 10_000), errors.ImageTooLargeError, id="pillow-warns"),
        pytest.param(png_of_size(30_000, 30_000), errors.ImageTooLargeError, id="pillow-raises"),
    ],
)
def test_bytes_that_are_no_usable_image_are_refused_by_name(data, error):
    with pytest.raises(error):
        wire.decode_image(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_images_that_break_off_are_refused(picture, form, share):
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    data = pillow(Image.fromarray(noise), form)
    with pytest.raises(errors.DamagedImageError):
        wire.decode_image(data[: int(len(data) * share)])


def test_a_bomb_is_refused_without_decoding_it():
    bomb = pillow(Image.new("1", (9_999, 9_999)), "PNG")
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(errors.ImageTooLargeError):
        wire.decode_image(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_pixel_limit_holds_for_all_images_of_a_request_together():
    data = pillow(Image.new("L", (4_000, 4_000)), "PNG")
    first, second, third = wire.decode_images([data, data, png_of_size(1, 1)])
    assert first.shape == (4_000, 4_000, 3)
    assert isinstance(second, errors.ImageTooLargeError)
    assert isinstance(third, errors.DamagedImageError)


# Requests


def test_options_come_from_headers_in_any_case(png):
    headers = {"x-score-THRESHOLD": "0.5", "X-Max-Instances": "3", "X-Mask": "rle", "Host": "x"}
    request = wire.read_request({"body": png}, headers)
    assert request.options == wire.Options(score_threshold=0.5, max_instances=3, mask="rle")
    assert not request.as_list


def test_multipart_fields_win_over_headers(png):
    fields = {"image": bytearray(png), "mask": bytearray(b"none")}
    request = wire.read_request(fields, {"X-Mask": "rle", "mask": {"content-type": ""}})
    assert request.options.mask == "none"
    assert request.images[0].shape == (120, 200, 3)


@pytest.mark.parametrize("decoded_by_server", [False, True])
def test_json_holds_several_images_and_parameters(png, jpeg, decoded_by_server):
    content = {
        "instances": [{"b64": base64.b64encode(data).decode()} for data in (png, jpeg, b"no")],
        "parameters": {"max_instances": 2},
    }
    body = content if decoded_by_server else b" " + json.dumps(content).encode()
    request = wire.read_request({"body": body}, {"X-Mask": "none"})
    assert request.as_list
    assert request.options == wire.Options(max_instances=2, mask="none")
    assert [type(image) for image in request.images] == [
        np.ndarray,
        np.ndarray,
        errors.NotAnImageError,
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", "high"),
        ("score_threshold", "1.1"),
        ("score_threshold", "nan"),
        ("score_threshold", True),
        ("max_instances", "0"),
        ("max_instances", "2.5"),
        ("max_instances", None),
        ("mask", "circle"),
        ("mask", b"\xff"),
        ("maks", "rle"),
    ],
)
def test_options_that_make_no_sense_are_refused(png, name, value):
    with pytest.raises(errors.BadOptionError, match=name):
        wire.read_request({"image": png, name: value}, {})


@pytest.mark.parametrize(
    "body",
    [
        b"{oops",
        b"{}",
        b"[1]",
        b"[" * 100_000,
        b'{"instances": []}',
        b'{"instances": {"b64": "aaaa"}}',
        b'{"instances": [{"b64": "***"}]}',
        b'{"instances": ["aaaa"]}',
        b'{"instances": [{"b64": 5}]}',
        b'{"instances": [{"b64": "aaaa"}], "parameters": 3}',
        json.dumps({"instances": [{"b64": "aaaa"}] * 9}).encode(),
    ],
)
def test_json_of_another_form_is_refused(body):
    with pytest.raises(errors.BadJsonError):
        wire.read_request({"body": body}, {})


@pytest.mark.parametrize("fields", [{}, {"mask": b"rle"}, {"picture": b"x"}])
def test_requests_without_image_are_refused(fields):
    with pytest.raises(errors.EmptyRequestError):
        wire.read_request(fields, {})


@pytest.mark.parametrize("field", ["body", "image"])
def test_an_empty_image_is_an_error_of_that_image(field):
    (image,) = wire.read_request({field: b""}, {}).images
    assert isinstance(image, errors.EmptyRequestError)


# Answers


def test_an_answer_names_what_was_found_in_pixels_of_the_image():
    error, answer = answer_to(wire.Request(images=(None,)), squares(2))
    assert error is None
    assert answer == {
        "image": {"height": 50, "width": 80},
        "model": MODEL,
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
    """Clients that know `polygon` alone go on and see the best part."""
    part = squares().polygons[2:]
    found = replace(squares(count=2), further_parts={1: part})
    _, answer = answer_to(wire.Request(images=(None,)), found)
    whole, parted = answer["instances"]
    assert "polygons" not in whole
    assert parted["polygons"][0] == parted["polygon"]
    np.testing.assert_allclose(parted["polygons"][1], part[0], atol=0.0051)
    rle = wire.Options(mask="rle")
    _, answer = answer_to(wire.Request(images=(None,), options=rle), found)
    area = bitmap_from_rle(answer["instances"][1]["rle"]).sum()
    assert area == 2 * bitmap_from_rle(answer["instances"][0]["rle"]).sum()


def test_rle_stands_in_for_the_polygon_when_asked():
    options = wire.Options(mask="rle")
    _, answer = answer_to(wire.Request(images=(None,), options=options), squares())
    assert "polygon" not in answer["instances"][0]
    masks = [instance["rle"] for instance in answer["instances"]]
    assert masks == rles_from_polygons(squares().polygons, (50, 80))


def test_answers_can_leave_masks_out():
    options = wire.Options(mask="none")
    _, answer = answer_to(wire.Request(images=(None,), options=options), squares())
    assert set(answer["instances"][0]) == {"category_id", "category", "score", "bbox"}


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (wire.Options(score_threshold=0), 3),
        (wire.Options(score_threshold=0.75), 2),
        (wire.Options(score_threshold=1), 0),
        (wire.Options(max_instances=1), 1),
        (wire.Options(score_threshold=0.85, max_instances=2), 1),
    ],
)
def test_options_limit_what_is_shown(options, count):
    _, answer = answer_to(wire.Request(images=(None,), options=options), squares())
    assert len(answer["instances"]) == count


def test_in_a_list_an_image_fails_alone():
    error, answer = answer_to(
        wire.Request(images=(None, None), as_list=True),
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
        error, answer = answer_to(wire.Request(images=(refusal,), as_list=as_list), refusal)
        assert (error.status, error.phrase) == (415, "Unsupported Media Type")
        assert answer["error"]["code"] == "not_an_image"


def test_every_answer_error_has_a_status_and_an_ascii_phrase():
    leaves = [errors.PredictionError, *errors.RequestError.__subclasses__()]
    assert sorted(leaf.status for leaf in leaves) == [400, 400, 413, 415, 422, 422, 500]
    assert all(leaf("x").phrase.isascii() for leaf in leaves)
