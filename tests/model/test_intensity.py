"""Files of more than 8 bits: what the network sees of them, and what is said about them."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from factories import make_tiny_coco
from polarmask.config.input_settings import InputConfig
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.config.settings import from_dict, to_dict
from polarmask.data.coco import load_coco
from polarmask.data.intensity import stretched, to_uint8
from polarmask.errors import ConfigError, DataError
from polarmask.labels.precompute import precompute
from polarmask.training.dataset import EpochImage, SampleKey, TrainingImages

AS_IS, PERCENTILE = InputConfig(), InputConfig(intensity="percentile")
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)


def in_use(bits):
    return InputConfig(intensity="bit_depth", bits=bits)


@pytest.fixture
def data(tmp_path):
    return make_tiny_coco(tmp_path / "data", images=3, val_images=1)


def rewrite(data, convert):
    """Store the pictures as TIFF files with other values; `convert` gets (H, W) uint8."""
    for split in ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        document = json.loads(path.read_text())
        for image in document["images"]:
            old = data / "images" / image["file_name"]
            image["file_name"] = old.with_suffix(".tif").name
            grey = convert(cv2.imread(str(old), cv2.IMREAD_GRAYSCALE))
            Image.fromarray(grey).save(old.with_suffix(".tif"))
        path.write_text(json.dumps(document))


def kinds(data):
    return sorted({(problem.kind, problem.kept) for problem in data.problems})


@pytest.mark.parametrize("config", [AS_IS, in_use(8), in_use(12), in_use(16)])
def test_eight_bits_keep_their_values(config):
    np.testing.assert_array_equal(to_uint8(GREY, config), GREY, strict=True)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_the_bits_in_use_become_eight(bits, dtype):
    deep = GREY.astype(dtype) << (bits - 8)
    np.testing.assert_array_equal(to_uint8(deep, in_use(bits)), GREY, strict=True)


def test_as_is_takes_the_upper_of_two_bytes():
    deep = GREY.astype(np.uint16) * 256 + 7
    np.testing.assert_array_equal(to_uint8(deep, AS_IS), GREY, strict=True)


def test_values_above_the_bits_in_use_are_white():
    assert to_uint8(np.full((1, 1, 3), 4096, np.uint16), in_use(12)).tolist() == [[[255] * 3]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_percentiles_give_the_same_picture_for_every_scale_and_offset(dtype):
    rng = np.random.default_rng(0)
    image = rng.integers(20, 90, (50, 60, 3))
    expected = stretched(image.astype(np.uint8))
    assert (expected.min(), expected.max()) == (0, 255)
    scaled = image * (1 if dtype == np.uint8 else 50) + 30
    np.testing.assert_allclose(to_uint8(scaled.astype(dtype), PERCENTILE), expected, atol=1)


def test_each_channel_has_its_own_percentiles():
    image = np.stack([np.arange(1000), np.arange(1000) * 7, np.zeros(1000)], axis=1)
    result = stretched(image.reshape(20, 50, 3).astype(np.uint16))
    np.testing.assert_array_equal(result[..., 0], result[..., 1])
    assert not result[..., 2].any()


def test_a_stretched_picture_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
    once = stretched(image)
    np.testing.assert_allclose(stretched(once), once, atol=1)


def test_a_few_bright_pixels_on_black_are_seen():
    image = np.zeros((100, 100, 3), np.float32)
    image[5, 5:9] = 0.25
    image[0, 0] = np.nan
    image[0, 1] = -np.inf
    assert np.flatnonzero(stretched(image)[..., 0]).tolist() == [505, 506, 507, 508]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(AS_IS, np.float32), (AS_IS, np.int32), (in_use(12), np.float32)],
)
def test_values_without_a_range_are_refused_with_the_setting_that_takes_them(config, dtype):
    with pytest.raises(DataError, match=r"--set input\.intensity=percentile"):
        to_uint8(GREY.astype(dtype), config)


@pytest.mark.parametrize(
    "settings", [["input.bits=12"], ["input.intensity=bit_depth", "input.bits=7"]]
)
def test_bits_that_nothing_reads_are_refused(settings):
    with pytest.raises(ConfigError, match="bits"):
        override(tiny(), settings)


def test_a_model_from_before_the_setting_reads_as_it_did():
    plain = to_dict(tiny())
    for name in ("intensity", "bits", "max_pixels"):
        del plain["input"][name]
    assert from_dict(plain) == tiny()


def test_the_bits_in_use_are_found_and_training_then_sees_the_pictures(data, tmp_path):
    grey = cv2.imread(str(data / "images" / "train_000.png"), cv2.IMREAD_GRAYSCALE)
    rewrite(data, lambda grey: grey.astype(np.uint16) << 4)
    split = load_coco(data, "train", config=AS_IS)
    assert kinds(split) == [("few_levels", True)]
    assert "12 of 16 bits" in split.problems[0].detail
    assert split.summary.problems[0].count == 3
    assert split.input_settings == ("input.intensity=bit_depth", "input.bits=12")
    config = override(tiny(), [*split.input_settings, "augment=off"])
    fixed = load_coco(data, "train", config=config.input)
    assert kinds(fixed) == []
    images = TrainingImages(fixed, precompute(data, tmp_path / "labels", config), config)
    key = EpochImage(0, 0)
    seen = images[SampleKey(key, images.canvas_hw(key))].image
    np.testing.assert_array_equal(seen[: grey.shape[0], : grey.shape[1], 0], grey)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        pytest.param(None, [("few_levels", True)], id="unknown"),
        pytest.param(PERCENTILE, [], id="percentile"),
        pytest.param(in_use(12), [], id="bits-in-use"),
        pytest.param(in_use(10), [("clipped_values", True)], id="too-few-bits"),
    ],
)
@pytest.mark.parametrize("check_pixels", [False, True])
def test_values_are_judged_by_the_setting(data, config, found, check_pixels):
    rewrite(data, lambda grey: grey.astype(np.uint16) << 4)
    split = load_coco(data, "train", check_pixels=check_pixels, config=config)
    assert kinds(split) == found
    assert len(split.images) == 3


def test_full_sixteen_bits_are_no_problem(data):
    rewrite(data, lambda grey: grey.astype(np.uint16) * 257)
    assert load_coco(data, "train").problems == ()


def test_floating_point_images_are_left_out_but_for_percentile(data):
    rewrite(data, lambda grey: grey.astype(np.float32) / 255)
    assert kinds(load_coco(data, "train")) == [("unknown_intensity", True)]
    assert load_coco(data, "train", check_pixels=True, config=PERCENTILE).problems == ()
    with pytest.raises(DataError, match=r"--set input\.intensity=percentile"):
        load_coco(data, "train", config=AS_IS)


def test_images_over_the_limit_are_left_out(data):
    limit = replace(AS_IS, max_pixels=96 * 128 - 1)
    with pytest.raises(DataError, match=r"too_many_pixels.*--set input\.max_pixels=12288"):
        load_coco(data, "train", config=limit)
