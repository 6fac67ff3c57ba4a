import cv2
import numpy as np
import pytest
from PIL import Image

from polarmask.data.images import read_image, read_size
from polarmask.errors import DataError

COLOUR = np.zeros((4, 6, 3), dtype=np.uint8)
COLOUR[:, :3] = (200, 100, 50)


def test_every_mode_becomes_rgb(tmp_path):
    Image.fromarray(COLOUR).quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(np.dstack([COLOUR, COLOUR[:, :, 0]])).save(tmp_path / "alpha.png")
    Image.fromarray(COLOUR[:, :, 0]).save(tmp_path / "grey.png")
    deep = COLOUR[:, :, 0].astype(np.uint16) * 256 + 7
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    Image.fromarray(deep).save(tmp_path / "deep.tiff")
    grey = np.repeat(COLOUR[:, :, :1], 3, axis=2)
    expected = {"palette.png": COLOUR, "alpha.png": COLOUR}
    for name in ("palette.png", "alpha.png", "grey.png", "deep.png", "deep.tiff"):
        pixels = read_image(tmp_path / name)
        assert pixels.dtype == np.uint8
        assert (pixels == expected.get(name, grey)).all(), name


@pytest.mark.parametrize("deep", [False, True], ids=["8-bit", "16-bit"])
def test_orientation_counts_only_for_people(tmp_path, deep):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    grey = COLOUR[:, :, 0].astype(np.uint16) * 256 if deep else COLOUR
    Image.fromarray(grey).save(path, exif=exif)
    expected = np.repeat(COLOUR[:, :, :1], 3, axis=2) if deep else COLOUR
    assert (read_image(path) == expected).all()
    assert read_size(path) == (4, 6)
    assert (read_image(path, upright=True) == np.rot90(expected, -1)).all()


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        pytest.param(np.int32, "32-bit integers", id="integer"),
        pytest.param(np.float32, "floating point", id="float"),
    ],
)
def test_values_of_unknown_range_are_refused_with_a_way_out(tmp_path, dtype, reason):
    path = tmp_path / "depth.tiff"
    Image.fromarray(COLOUR[:, :, 0].astype(dtype)).save(path)
    with pytest.raises(DataError, match=rf"depth\.tiff holds {reason}.*save it with 8 or 16 bits"):
        read_image(path)


def test_a_truncated_jpeg_is_no_grey_half_image(tmp_path):
    path = tmp_path / "photo.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_size])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"gone\.png is no readable image"):
        read(tmp_path / "gone.png")
