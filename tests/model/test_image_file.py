import struct
import zlib
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from polarmask.data.images import read_header, read_image
from polarmask.data.intensity import shown
from polarmask.errors import DataError

COLOUR = np.zeros((4, 6, 3), dtype=np.uint8)
COLOUR[:, :3] = (200, 100, 50)
COLOUR[0, 0] = (10, 20, 30)
DEEP = COLOUR.astype(np.uint16) * 257 - 5
FORMATS = {"a.jpg": "JPEG", "a.png": "PNG", "a.webp": "WEBP", "a.tif": "TIFF", "a.avif": "AVIF"}


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def grey(pixels):
    return np.repeat(pixels[:, :, :1], 3, axis=2)


def test_every_mode_becomes_rgb(tmp_path):
    Image.fromarray(COLOUR).quantize(4).save(tmp_path / "palette.png")
    save(tmp_path / "alpha.png", np.dstack([COLOUR, COLOUR[:, :, 0]]))
    save(tmp_path / "grey.png", COLOUR[:, :, 0])
    expected = {"palette.png": COLOUR, "alpha.png": COLOUR, "grey.png": grey(COLOUR)}
    for name, pixels in expected.items():
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels, strict=True)
        assert read_header(tmp_path / name).values == "uint8"


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "colour.png", "colour.tiff", "rgba.png"])
def test_sixteen_bits_stay_sixteen(tmp_path, name):
    pixels = {"grey": DEEP[:, :, 0], "colour": DEEP[:, :, ::-1]}.get(name.partition(".")[0])
    if pixels is None:
        pixels = np.dstack([DEEP[:, :, ::-1], DEEP[:, :, 0]])
    cv2.imwrite(str(tmp_path / name), pixels)
    expected = grey(DEEP) if name.startswith("grey") else DEEP
    np.testing.assert_array_equal(read_image(tmp_path / name), expected, strict=True)
    assert read_header(tmp_path / name).values == "uint16"


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_deeper_values_stay_as_they_are(tmp_path, dtype):
    path = save(tmp_path / "depth.tiff", COLOUR[:, :, 0].astype(dtype) * 1000)
    np.testing.assert_array_equal(read_image(path), grey(COLOUR).astype(dtype) * 1000, strict=True)
    assert read_header(path).values == np.dtype(dtype).name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["8.png", "8.tif", "16.png", "16.tif", "lzw.tif"])
def test_orientation_counts_only_for_people(tmp_path, name, orientation):
    stored = DEEP[:, :, 0] if name.startswith("16") else COLOUR
    options = {"compression": "tiff_lzw"} if name.startswith("lzw") else {}
    path = save(tmp_path / name, stored, exif=oriented(orientation), **options)
    expected = grey(DEEP) if name.startswith("16") else COLOUR
    upright = {
        1: expected,
        2: expected[:, ::-1],
        3: np.rot90(expected, 2),
        4: expected[::-1],
        5: expected.swapaxes(0, 1),
        6: np.rot90(expected, -1),
        7: np.rot90(expected, 2).swapaxes(0, 1),
        8: np.rot90(expected),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(path, upright=True), upright)
    header = read_header(path)
    assert (header.height, header.width, header.orientation) == (4, 6, orientation)


def test_a_truncated_jpeg_is_no_grey_half_image(tmp_path):
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_header])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"gone\.png is no readable image"):
        read(tmp_path / "gone.png")


def test_a_picture_over_the_limit_is_refused_with_the_setting_that_raises_it(tmp_path):
    path = save(tmp_path / "large.png", COLOUR)
    assert read_image(path, max_pixels=24).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"large\.png has .*input\.max_pixels=24.*--max-pixels 24"):
        read_image(path, max_pixels=23)


def test_a_picture_of_182_megapixels_is_opened(tmp_path):
    path = save(tmp_path / "slide.png", COLOUR)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 14_000, 13_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    header = read_header(path)
    assert (header.height, header.width) == (13_000, 14_000)


def test_an_orientation_that_cannot_be_read_is_named_only_where_it_counts(tmp_path):
    path = save(tmp_path / "photo.jpg", COLOUR, exif=b"Exif\0\0MM\0*\0")
    assert read_header(path).orientation is None
    assert read_image(path).shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"photo\.jpg: its EXIF data can't be read"):
        read_image(path, upright=True)


def test_only_the_first_page_is_read_and_the_header_says_so(tmp_path):
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    for name in ("pages.tif", "frames.gif", "frames.webp", "frames.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], lossless=True)
        assert read_header(tmp_path / name).pages, name
        np.testing.assert_array_equal(read_image(tmp_path / name), COLOUR, err_msg=name)
        pages[0].save(tmp_path / name)
        assert not read_header(tmp_path / name).pages, name


def damaged(data, rng):
    """Change a file as faulty programs do: lengths, counts, tags, blocks, its end."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(2, len(result) - 8))
        kind = rng.integers(5)
        if kind == 0:
            result[place : place + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 1])))
        elif kind == 1:
            result[place : place + 2] = struct.pack(">H", int(rng.choice([0, 1, 0x7FFF, 0xFFFF])))
        elif kind == 2:
            result[place] ^= 1 << int(rng.integers(8))
        elif kind == 3:
            del result[place : place + int(rng.integers(1, 16))]
        else:
            result[place:place] = result[place : place + int(rng.integers(1, 64))]
    return bytes(result)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path, name):
    rng = np.random.default_rng(1)
    path = tmp_path / name
    exif = oriented(6)
    exif.update({0x010F: "maker" * 9, 0x011A: 72.0, 0x0128: 2})
    exif.get_ifd(0x8769).update({0x9000: b"0230", 0x829A: 0.01})
    profile = rng.bytes(200)
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    if name == "a.png":
        image = image.quantize(20)
    image.save(path, format=FORMATS[name], exif=exif, icc_profile=profile)
    data = path.read_bytes()
    refused = []
    for _ in range(150):
        path.write_bytes(damaged(data, rng))
        for read in (read_header, read_image, partial(read_image, upright=True)):
            try:
                read(path)
            except DataError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert all(name in each for each in refused)


def test_what_people_look_at_is_never_black(tmp_path):
    dim = save(tmp_path / "dim.tif", (COLOUR[:, :, 0].astype(np.uint16) + 5))
    assert shown(read_image(dim)).max() == 255
    np.testing.assert_array_equal(shown(COLOUR), COLOUR)
