"""Labels made in the loader: at every scale, and the original's after mirroring."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from factories import make_tiny_coco, rle_from_bitmap
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data.coco import Annotation, ImageRecord, load_coco
from polarmask.data.preprocess import normalise
from polarmask.errors import ConfigError
from polarmask.geometry.locations import level_points
from polarmask.geometry.masks import bitmap_from_rle, rle_area, rle_box
from polarmask.geometry.masks import rle_from_segmentation as rle_of
from polarmask.geometry.symmetry import Symmetry, apply_to_image
from polarmask.labels.image_labels import label_image, label_view
from polarmask.labels.store import LabelStore
from polarmask.training.dataset import EpochImage, SampleKey, TrainingImages
from polarmask.training.train import TrainOptions, train

EIGHT = [Symmetry(*bits) for bits in product((False, True), repeat=3)]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = make_tiny_coco(tmp_path_factory.mktemp("data"), images=1, sizes=((96, 128),))
    return load_coco(folder, "train").images[0]


def mirrored(record, symmetry):
    """Return the record as if its bitmaps had been drawn mirrored, in one order of objects."""
    annotations = []
    for old in record.annotations:
        bitmap = bitmap_from_rle(rle_of(old.segmentation, (record.height, record.width)))
        moved = apply_to_image(np.repeat(bitmap[:, :, None], 3, axis=2), symmetry)[:, :, 0]
        rle = rle_from_bitmap(moved)
        annotations.append(
            Annotation(
                id=old.id,
                category=old.category,
                parts=(),
                bbox=rle_box(rle),
                area=float(rle_area(rle)),
                crowd=False,
                segmentation=rle,
            )
        )
    height, width = bitmap.shape[::-1] if symmetry.transpose else bitmap.shape
    return ImageRecord(record.id, record.file_name, width, height, tuple(annotations))


@pytest.mark.parametrize("symmetry", EIGHT, ids=str)
def test_original_labels_of_a_mirrored_view_are_those_of_the_mirrored_bitmaps(record, symmetry):
    config = override(tiny(), ["labels.mode=original"])
    from_bitmaps = mirrored(record, Symmetry())
    view = label_view(from_bitmaps, config, symmetry)
    expected = label_image(mirrored(record, symmetry), config)
    assert len(view.object_P) > 10
    assert view.canvas_hw == expected.canvas_hw
    for name in ("location_P3", "object_P", "ray_PR", "box_G4", "category_G"):
        np.testing.assert_array_equal(getattr(view, name), getattr(expected, name), err_msg=name)


@pytest.fixture(scope="module")
def scaled(small_config):
    settings = ["input.short_side=96", "input.train_short_sides=[64,160]"]
    return override(small_config, settings)


@pytest.fixture
def images(scaled, drawn_data, drawn_labels):
    return TrainingImages(load_coco(drawn_data, "train"), LabelStore.open(drawn_labels), scaled)


def test_the_short_side_is_drawn_from_the_range_and_from_seed_epoch_and_image(images, scaled):
    sides = [images.view(EpochImage(epoch, 1))[0].input.short_side for epoch in range(300)]
    assert (min(sides), max(sides)) == (64, 160)
    again = [images.view(EpochImage(epoch, 1))[0].input.short_side for epoch in range(300)]
    assert sides == again
    others = [images.view(EpochImage(epoch, 2))[0].input.short_side for epoch in range(300)]
    assert sides != others


def test_a_fixed_scale_mirrors_as_before_multi_scale_was_there(images, scaled):
    fixed = replace(scaled, input=replace(scaled.input, train_short_sides=None))
    plain = TrainingImages.__new__(TrainingImages)
    vars(plain).update(vars(images), _config=fixed)
    for epoch in range(20):
        assert plain.view(EpochImage(epoch, 3))[1] == images.view(EpochImage(epoch, 3))[1]


def test_image_and_labels_of_a_view_have_its_scale(images):
    for epoch in range(6):
        place = EpochImage(epoch, 0)
        config, symmetry = images.view(place)
        sample = images[SampleKey(place, images.canvas_hw(place))]
        assert sample.image.shape[:2] == sample.labels.canvas_hw == images.canvas_hw(place)
        expected = label_view(images.records[0], config, symmetry)
        np.testing.assert_array_equal(sample.labels.ray_PR, expected.ray_PR)
        # Objects are colourful and the background is grey: locations must meet the former.
        location_P3 = torch.from_numpy(sample.labels.location_P3)
        x_P, y_P = level_points(location_P3, config.model.strides).long().T.numpy()
        colour_P = np.ptp(sample.image[y_P, x_P].astype(int), axis=1)
        assert (colour_P > 60).mean() > 0.9


@pytest.mark.parametrize(
    "settings",
    [
        ["input.short_side=96", "input.train_short_sides=[64,128]"],
        [
            *("input.short_side=96", "input.max_side=128", "input.keep_ratio=false"),
            *("labels.mode=original", "loss.normalizer=original", "loss.centerness=polar"),
            "postprocess.score=original",
        ],
        ["model.box_branch=true", "labels.parts=all"],
    ],
    ids=["multi-scale", "original", "parts"],
)
def test_it_trains(settings, small_config, drawn_data, tmp_path):
    config = override(small_config, settings)
    options = TrainOptions(data=drawn_data, out=tmp_path / "run")
    train(config, replace(options, stop_after=2))
    assert (options.out / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["input.keep_ratio=false"], "give input.short_side"),
        (["input.train_short_sides=[64,128]"], "give input.short_side"),
        (["input.short_side=64", "input.train_short_sides=[128,64]"], "lowest <= highest"),
        (["input.multiple=48"], "multiple of 32"),
        (["labels.parts=all"], r"set model\.box_branch=true"),
        (["labels.parts=all", "labels.mode=original"], "largest part only"),
        (["labels.mode=original", "model.num_rays=32"], "must divide 360"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny(), settings)


def test_means_are_listed_in_rgb_and_channels_come_out_as_asked():
    config = override(tiny(), ["input.mean=[1,2,3]", "input.std=[1,1,2]"]).input
    pixel = torch.tensor([[[[11, 22, 33]]]], dtype=torch.uint8)
    assert normalise(pixel, config).flatten().tolist() == [10, 20, 15]
    bgr = replace(config, channel_order="bgr")
    assert normalise(pixel, bgr).flatten().tolist() == [15, 20, 10]
