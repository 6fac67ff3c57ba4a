"""Images as people have them, and as nobody should send them."""

import io
import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import costly_requests as costly
from polarmask.data.images import read_image
from polarmask_serving import errors
from polarmask_serving.answer.image_bytes import decode_image
from polarmask_serving.answer.image_file import Budget, read_image_file


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


def test_a_png_comes_out_as_it_went_in(picture, png):
    np.testing.assert_array_equal(decode_image(png), picture)


def test_colours_of_a_jpeg_keep_their_order(picture, jpeg):
    # JPEG rounds; quarters are 60 px of one colour, so their middles are near the original.
    np.testing.assert_allclose(decode_image(jpeg)[30, 50], picture[30, 50], atol=8)


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was turned: show the file a quarter turn clockwise
    for form in ("JPEG", "PNG"):
        image = decode_image(pillow(Image.fromarray(picture), form, exif=exif))
        assert image.shape == (200, 120, 3)
        np.testing.assert_allclose(image[50, 90], picture[30, 50], atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_shown_as_people_see_it(picture, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = pillow(Image.fromarray(picture), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data), np.asarray(expected))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_png_modes_become_rgb(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(pillow(image, "PNG")), expected)


def test_cmyk_jpeg_becomes_rgb(picture):
    image = decode_image(pillow(Image.fromarray(picture).convert("CMYK"), "JPEG"))
    np.testing.assert_allclose(image[30, 50], picture[30, 50], atol=12)


def test_sixteen_bit_grey_stays_as_it_is():
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 7
    image = decode_image(cv2.imencode(".png", grey)[1].tobytes())
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2), strict=True)


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_stays_as_it_is(channels, tmp_path):
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (16, 20, channels), dtype=np.uint16)
    data = cv2.imencode(".png", deep)[1].tobytes()
    np.testing.assert_array_equal(decode_image(data), deep[..., 2::-1], strict=True)
    (tmp_path / "deep.png").write_bytes(data)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), decode_image(data))


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_shown_as_it_is_stored(picture, mode):
    image = Image.fromarray(picture).convert(mode)
    transparent = 0 if mode != "RGB" else (200, 30, 30)
    data = pillow(image, "PNG", transparency=transparent)
    np.testing.assert_array_equal(decode_image(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_kinds_of_jpeg_give_the_same_picture(picture, options):
    image = decode_image(pillow(Image.fromarray(picture), "JPEG", quality=95, **options))
    np.testing.assert_allclose(image[30, 50], picture[30, 50], atol=8)


def test_grey_jpeg_becomes_rgb_and_is_turned(picture):
    exif = Image.Exif()
    exif[0x112] = 8
    grey = Image.fromarray(picture).convert("L")
    image = decode_image(pillow(grey, "JPEG", exif=exif))
    assert image.shape == (200, 120, 3)
    assert (image[..., 0] == image[..., 2]).all()


def test_a_second_header_can_not_hide_a_bomb():
    honest, bomb = png_of_size(10, 10), png_of_size(20_000, 20_000)
    header = slice(8, 8 + 25)
    for first, second in ((honest, bomb), (bomb, honest)):
        data = first[:8] + first[header] + second[header] + first[33:]
        with pytest.raises((errors.ImageTooLargeError, errors.DamagedImageError)):
            decode_image(data)


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
        decode_image(data)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_images_that_break_off_are_refused(picture, form, share):
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, dtype=np.uint8)
    data = pillow(Image.fromarray(noise), form)
    with pytest.raises(errors.DamagedImageError):
        decode_image(data[: int(len(data) * share)])


def test_a_bomb_is_refused_without_decoding_it():
    bomb = pillow(Image.new("1", (9_999, 9_999)), "PNG")
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(errors.ImageTooLargeError):
        decode_image(bomb)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(costly.jpeg_of_scans(12_000), "12000 scans.* have 500", id="scans"),
        pytest.param(costly.jpeg_of_scans(501), "501 scans", id="one-scan-too-many"),
        pytest.param(costly.jpeg_of_scans(40, 4_992), "40 scans.* have 32", id="scans-of-25-MP"),
        pytest.param(costly.png_of_chunks(50_001), "50000 chunks", id="chunks"),
        pytest.param(costly.png_with_long_pixels(300), "its last row", id="pixels-after-the-last"),
    ],
)
def test_what_takes_long_to_decode_is_refused_before_it_is_decoded(data, reason, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(errors.CostlyImageError, match=reason):
        decode_image(data)


def test_a_jpeg_of_too_many_segments_is_refused(jpeg):
    with pytest.raises(errors.CostlyImageError, match="50000 segments"):
        decode_image(costly.jpeg_of_segments(jpeg, 50_001))


def test_up_to_500_scans_and_some_pixels_after_the_last_row_are_decoded():
    assert decode_image(costly.jpeg_of_scans(500)).shape == (64, 64, 3)
    assert decode_image(costly.jpeg_of_scans(32, 4_992)).shape == (4_992, 4_992, 3)
    assert decode_image(costly.png_with_long_pixels(10)).shape == (64, 64, 3)


def test_decoders_get_no_texts_profiles_and_only_one_usual_exif(jpeg):
    """Each text of a PNG is unpacked, each EXIF of a JPEG searched: 20 MB of them take minutes."""
    plain = costly.png_with(b"")
    for data in (costly.png_of_texts(3), costly.png_of_chunks(3), costly.png_of_exif(1, 70_000)):
        assert read_image_file(data, Budget()).data == plain
    assert read_image_file(costly.png_of_exif(10, 60_000), Budget()).data != plain
    once = read_image_file(costly.jpeg_of_exif(jpeg, 1), Budget())
    assert read_image_file(costly.jpeg_of_exif(jpeg, 250), Budget()).data == once.data
    assert read_image_file(costly.jpeg_of_segments(jpeg, 10), Budget()).data == jpeg


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decodes_as_if_all_of_it_were_decoded(picture, mode, options):
    data = pillow(Image.fromarray(picture).convert(mode), "JPEG", comment=b"a", **options)
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decode_image(data), whole)
