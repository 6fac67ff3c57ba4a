"""Training on crops of large images: where they lie, what they show, how much memory they take."""

import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from factories import (
    TINY_CATEGORIES,
    coco_annotation,
    draw_objects,
    ellipse,
    make_tiny_coco,
    paint,
    rle_from_bitmap,
)
from polarmask.config.overrides import override
from polarmask.config.presets import AUTO, preset, tiny
from polarmask.data.coco import Annotation, ImageRecord, load_coco
from polarmask.data.crop import count_crops, crop_around, cropped, crops_text, regions_of
from polarmask.data.images import read_image
from polarmask.data.pixel_files import PixelFiles
from polarmask.data.preprocess import canvas_hw, input_scale
from polarmask.errors import ConfigError, DataError
from polarmask.evaluation.auto_preset import describe_auto, fit
from polarmask.evaluation.evaluate import _shrunk_away, evaluate
from polarmask.evaluation.recommend import shrink_warning
from polarmask.geometry.locations import all_locations, level_points
from polarmask.geometry.masks import bitmap_from_rle
from polarmask.geometry.masks import rle_from_segmentation as rle_of
from polarmask.inference.model_folder import ModelCard, read_card
from polarmask.inference.predictor import Predictor
from polarmask.labels.image_labels import label_image, label_view
from polarmask.labels.precompute import precompute
from polarmask.labels.store import label_settings
from polarmask.report.labels import labels_page
from polarmask.training.dataset import EpochImage, SampleKey, TrainingImages

CROP = override(tiny(), ["input.crop=64"])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of 240 x 200 and of 60 x 48 pixels, in turn."""
    folder = tmp_path_factory.mktemp("crop")
    return make_tiny_coco(folder, images=4, val_images=1, sizes=((200, 240), (48, 60)))


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    return precompute(data, tmp_path_factory.mktemp("crop-labels"), CROP)


@pytest.fixture
def images(data, store, tmp_path):
    return TrainingImages(load_coco(data, "train"), store, CROP, pixels=tmp_path / "pixels")


def sample(images, epoch, index):
    source = EpochImage(epoch, index)
    return images[SampleKey(source, images.canvas_hw(source))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(["input.crop=63"], "crop is 63: needs 0", id="too-small"),
        pytest.param(["input.crop=-1"], "crop is -1: needs 0", id="negative"),
        pytest.param(["input.crop=20000"], "crop is 20000: needs 0", id="too-large"),
        pytest.param(["input.crop=64.5"], "input.crop: .*valid integer", id="half"),
        pytest.param(
            ["input.crop=64", "input.short_side=64", "input.keep_ratio=false"],
            "crop takes squares",
            id="stretched",
        ),
        pytest.param(
            ["input.crop=64", "labels.mode=original"], "takes whole images", id="original"
        ),
    ],
)
def test_impossible_crops_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny(), settings)


@pytest.mark.parametrize(
    ("hw", "crops"),
    [((64, 64), 1), ((40, 30), 1), ((90, 90), 1), ((128, 64), 2), ((10_000, 10_000), 156**2)],
)
def test_an_epoch_takes_as_many_crops_as_have_the_area_of_an_image(hw, crops):
    assert count_crops(hw, CROP.input) == crops


def test_the_crops_of_an_epoch_lie_in_the_image_and_see_all_of_it_in_time():
    record = ImageRecord(1, "a.png", 240, 200, ())
    regions = regions_of([record], CROP.input).on_disk
    assert len(regions) == count_crops((200, 240), CROP.input) == 12
    rng, seen = np.random.default_rng(0), np.zeros((200, 240), int)
    for _ in range(200):
        for region in regions:
            x0, y0, x1, y1 = region.draw(rng)
            assert 0 <= x0 < x1 == x0 + 64 <= 240
            assert 0 <= y0 < y1 == y0 + 64 <= 200
            seen[y0:y1, x0:x1] += 1
    assert seen.min() > 0
    inner = seen[64:-64, 64:-64]
    assert inner.min() > 0.6 * inner.mean()


def bitmap(annotation, hw):
    return bitmap_from_rle(rle_of(annotation.segmentation, hw))


def test_a_crop_shows_of_each_object_what_lies_in_it(data):
    record = load_coco(data, "train").images[0]
    whole = {a.id: bitmap(a, (200, 240)) for a in record.annotations}
    rng = np.random.default_rng(3)
    cut = slivers = 0
    for _ in range(40):
        x, y = rng.integers(0, (240 - 64, 200 - 64)).tolist()
        crop = cropped(record, (x, y, x + 64, y + 64))
        assert (crop.height, crop.width) == (64, 64)
        shown = {a.id: a for a in crop.annotations}
        for key, mask in whole.items():
            expected = mask[y : y + 64, x : x + 64]
            share = expected.sum() / mask.sum()
            if key not in shown:
                assert expected.sum() <= 2  # a pixel that the outline barely touches
                continue
            piece = shown[key]
            # Only pixels that the outline passes through may round differently, of which it has one
            # per pixel of its length; .06 and .17 of them are the most seen.
            length = sum(cv2.arcLength(np.float32(part), True) for part in piece.segmentation)
            wrong = np.count_nonzero(bitmap(piece, (64, 64)) != expected)
            assert wrong <= max(1, 0.1 * length)
            if piece.crowd:
                assert share < 0.13
                slivers += 1
                continue
            assert share > 0.07
            assert abs(piece.area - expected.sum()) <= 0.25 * length
            vertices = np.concatenate(piece.parts)
            assert vertices.min() >= 0
            assert vertices.max() <= 64
            np.testing.assert_allclose(
                piece.bbox, [*vertices.min(axis=0), *vertices.max(axis=0)], atol=0.01
            )
            cut += 0 < share < 1
    assert cut > 50
    assert slivers > 5


def annotation_of(polygon, **fields):
    x, y = polygon.min(axis=0), polygon.max(axis=0)
    plain = {"crowd": False, "segmentation": (polygon,), "parts": (polygon,), "area": 1.0}
    return Annotation(id=1, category=0, bbox=(*x.tolist(), *y.tolist()), **plain | fields)


def test_an_object_that_a_border_cuts_in_two_has_two_parts():
    horseshoe = np.array([[10, 40], [100, 40], [100, 60], [30, 60], [30, 70], [100, 70], [100, 90]])
    horseshoe = np.array([*horseshoe, [10, 90]], dtype=float)
    record = ImageRecord(1, "a.png", 200, 200, (annotation_of(horseshoe, area=4000.0),))
    [piece] = cropped(record, (60, 0, 188, 128)).annotations
    areas = [cv2.contourArea(part.astype(np.float32)) for part in piece.parts]
    assert areas == pytest.approx([800, 800], rel=0.03)  # traced within their pixels
    [one] = cropped(record, (0, 0, 128, 128)).annotations
    assert len(one.parts) == 1


def test_a_crowd_is_cut_to_the_crop_as_mask_and_as_polygon():
    polygon = 30 * ellipse() + 60
    mask = np.zeros((120, 120), np.uint8)
    mask[40:90, 20:100] = 1
    runs = annotation_of(polygon, parts=(), crowd=True, segmentation=rle_from_bitmap(mask))
    runs = replace(runs, bbox=(20.0, 40.0, 100.0, 90.0))
    drawn = annotation_of(polygon, parts=(), crowd=True)
    record = ImageRecord(1, "a.png", 120, 120, (runs, drawn, replace(runs, bbox=(90, 90, 99, 99))))
    first, second = cropped(record, (0, 0, 64, 64)).annotations
    assert (bitmap(first, (64, 64)) == mask[:64, :64]).all()
    expected = bitmap_from_rle(rle_of((polygon,), (120, 120)))[:64, :64]
    assert np.count_nonzero(bitmap(second, (64, 64)) != expected) <= 10
    assert first.crowd
    assert second.crowd


@pytest.mark.parametrize("short_side", [None, 150])
def test_ignored_locations_are_those_on_a_mask(data, short_side):
    config = override(tiny(), ["labels.min_area=300", f"input.short_side={short_side}"])
    record = load_coco(data, "train").images[0]
    record = replace(record, annotations=(*record.annotations[:-1], crowd_in_corner()))
    labels = label_image(record, config)
    learned = set(labels.annotation_G.tolist())
    canvas = canvas_hw(labels.canvas_hw, config.model.strides)
    location_L3 = all_locations(canvas, config.model.strides)
    pixel_L2 = level_points(location_L3, config.model.strides).numpy() / input_scale(
        (200, 240), config.input
    )
    masks = [bitmap(a, (200, 240)) for a in record.annotations if a.id not in learned]
    claimed = set(map(tuple, labels.location_P3.tolist()))
    expected = [
        location
        for location, (x, y) in zip(location_L3.tolist(), pixel_L2.tolist(), strict=True)
        if x < 240 and y < 200 and any(mask[int(y), int(x)] for mask in masks)
        if tuple(location) not in claimed
    ]
    assert len(masks) > 3
    assert labels.ignored_I3.tolist() == expected


def crowd_in_corner():
    mask = np.zeros((200, 240), np.uint8)
    mask[150:, 170:] = 1
    rle = rle_from_bitmap(mask)
    box = (170.0, 150.0, 240.0, 200.0)
    return Annotation(
        id=999, category=0, parts=(), bbox=box, area=3500.0, crowd=True, segmentation=rle
    )


def test_a_sample_is_a_crop_with_its_labels_and_the_same_each_time(images, data):
    coco = load_coco(data, "train")
    assert len(images) == 2 * 12 + 2
    assert images.longest_side == 64
    images.copy_pixels()
    pixels = read_image(coco.image_path(coco.images[0]))
    for index in (0, 5):
        config, symmetry = images.view(EpochImage(3, index))
        box = images._region(index).draw(np.random.default_rng((config.seed, 3, index, 1)))
        x0, y0, x1, y1 = box
        found, again = sample(images, 3, index), sample(images, 3, index)
        undone = np.sort(found.image[:64, :64].reshape(-1, 3), axis=0)
        assert (undone == np.sort(pixels[y0:y1, x0:x1].reshape(-1, 3), axis=0)).all()
        expected = label_view(cropped(coco.images[0], box), config, symmetry)
        assert (found.labels.location_P3 == expected.location_P3).all()
        assert len(found.labels.location_P3)
        assert (found.image == again.image).all()
        assert (found.image != sample(images, 4, index).image).any()
    assert sample(images, 0, 12).image.shape == (64, 64, 3)  # an image that is smaller


def test_images_without_copies_give_the_same_samples(images, data, store):
    images.copy_pixels()
    others = TrainingImages(load_coco(data, "train"), store, CROP)
    for index in (1, 13, 20):
        assert (sample(images, 0, index).image == sample(others, 0, index).image).all()


@pytest.mark.parametrize("intensity", ["as_is", "percentile"])
def test_copies_hold_what_is_decoded_and_follow_the_file(tmp_path, intensity):
    grey = (np.arange(90 * 70).reshape(90, 70) * 9).astype(np.uint16)
    path, config = tmp_path / "a.png", override(CROP, [f"input.intensity={intensity}"]).input
    box = (5, 10, 69, 74)
    for number, pixels in enumerate((grey, np.dstack([grey // 256] * 2 + [grey % 7]))):
        kind = np.uint8 if pixels.ndim == 3 else np.uint16
        cv2.imwrite(str(path), pixels.astype(kind))
        copies, decoded = PixelFiles(tmp_path / "copies", config), PixelFiles(None, config)
        copies.copy(path)
        assert (copies.read(path, box) == decoded.read(path, box)).all()
        assert len(list((tmp_path / "copies").iterdir())) == number + 1


def test_a_copy_without_room_is_an_error_that_says_so(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((90, 70, 3), np.uint8))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"make room for 0 MB there"):
        PixelFiles(tmp_path / "file" / "copies", CROP.input).copy(tmp_path / "a.png")


def test_labels_of_whole_images_have_the_scale_of_crops():
    config = override(CROP, ["input.max_side=32"]).input
    assert input_scale((640, 1280), config).tolist() == [0.5, 0.5]
    assert input_scale((16, 30), config).tolist() == [1, 1]


def test_a_store_for_crops_counts_objects_and_keeps_no_locations(data, store):
    summary = store.summary("train")
    plain = tiny()
    assert summary.instances == sum(len(i.annotations) for i in load_coco(data, "train").images)
    assert summary.mean_iou > 0.8
    assert not len(store.read("train", 11).location_P3)
    assert "crop" not in label_settings(plain)["input"]
    assert label_settings(CROP) != label_settings(plain)
    for config in (CROP, override(CROP, ["labels.min_area=1e6"])):
        splits = {"train": load_coco(data, "train")}
        page = labels_page(store, splits, config=config, provenance={"data": "drawn"})
        assert page.count("annotation 1") == 2 * 12  # captions, and texts for screen readers


def test_a_crop_around_an_object_has_it_inside(data):
    record = load_coco(data, "train").images[0]
    for annotation in record.annotations:
        box = crop_around(annotation, record, CROP.input)
        assert annotation.id in {a.id for a in cropped(record, box).annotations if not a.crowd}


def slide(record, side, objects, size):
    """Return a record of a slide with square objects in a square grid."""
    per_row = int(np.ceil(np.sqrt(objects)))
    step = side / per_row
    annotations = []
    for number in range(objects):
        row, column = divmod(number, per_row)
        corner = np.array([column, row]) * step
        square = corner + np.array([[0, 0], [size, 0], [size, size], [0, size]])
        annotations.append(annotation_of(square, area=float(size**2)))
    return replace(record, width=side, height=side, annotations=tuple(annotations))


@pytest.mark.parametrize(
    ("side", "size", "crop", "max_side"),
    [
        pytest.param(1000, 12, 0, 1024, id="small-image"),
        pytest.param(10_000, 12, 512, 1024, id="slide-of-small-objects"),
        pytest.param(10_000, 48, 1024, 512, id="slide-of-large-objects-is-shrunk"),
        pytest.param(3000, 240, 0, 320, id="large-objects-in-a-shrunk-image"),
    ],
)
def test_auto_takes_crops_of_large_images(data, side, size, crop, max_side):
    loaded = load_coco(data, "train")
    record = slide(loaded.images[0], side, 100, size)
    run = fit(replace(loaded, images=(record, replace(record, annotations=()))))
    assert (run.input.crop, run.input.max_side) == (crop, max_side)
    assert run.name == AUTO


def test_auto_stays_within_what_settings_allow(data):
    loaded = load_coco(data, "train")
    panorama = slide(loaded.images[0], 40_000, 36, 400)
    rod = np.array([[0, 0], [6000, 0], [6000, 60], [0, 60]])
    rods = tuple(annotation_of(rod, area=360_000.0) for _ in range(4))
    panorama = replace(panorama, annotations=(*panorama.annotations, *rods))
    pixels = fit(replace(loaded, images=(panorama,))).input  # impossible ones raise
    assert (pixels.crop, pixels.max_side) == (16_384, 992)
    crowd = slide(loaded.images[0], 250, 40_000, 1)
    assert fit(replace(loaded, images=(crowd,))).postprocess.pre_nms_top_k == 100_000


def test_objects_that_a_whole_image_loses_are_noted_for_a_model_of_crops_too(data):
    loaded = load_coco(data, "train")
    image = slide(loaded.images[0], 5000, 16, 6)
    split = replace(loaded, images=(image,))
    for settings in (["input.crop=512"], []):
        card = ModelCard(override(tiny(), settings), loaded.categories)
        whole = Predictor(None, card, torch.device("cpu"), tile=None)
        (note,) = _shrunk_away(whole, split)
        assert "16 of 16 objects are smaller than 2 pixels" in note.detail


def test_auto_counts_the_objects_and_crops_that_the_network_sees(data):
    loaded = load_coco(data, "train")
    crowded = replace(loaded, images=(slide(loaded.images[0], 10_000, 30_000, 12),))
    run = fit(crowded)
    assert run.input.crop == 512
    assert run.postprocess.max_instances == 500
    assert run.optim.epochs >= 1
    assert "images in crops of 512 px; " in describe_auto(run, crowded)
    steps = run.optim.epochs * 400 / run.optim.batch_size
    assert f" epochs of 400 crops, {steps:g} steps of " in describe_auto(run, crowded)
    assert "400 crops of 1 images" in crops_text(crowded.images, run.input)
    assert not crops_text(crowded.images, tiny().input)


@pytest.mark.parametrize(
    ("side", "size", "settings", "warns"),
    [
        pytest.param(10_000, 12, [], True, id="shrunk-to-specks"),
        pytest.param(10_000, 12, ["input.crop=512"], False, id="in-crops"),
        pytest.param(10_000, 12, ["input.crop=2048"], True, id="in-crops-that-are-shrunk"),
        pytest.param(1000, 7, [], False, id="small-before"),
        pytest.param(10_000, 200, [], False, id="large-enough"),
    ],
)
def test_a_warning_says_when_objects_become_too_small(data, side, size, settings, warns):
    loaded = load_coco(data, "train")
    slides = replace(loaded, images=(slide(loaded.images[0], side, 100, size),))
    strides = ["model.strides=[4,8,16]"]
    warning = shrink_warning(slides, override(tiny(), [*strides, *settings]))
    assert bool(warning) == warns
    assert not warns or "shrinks 100% of the objects below 8 px" in warning


@pytest.mark.parametrize(
    ("settings", "crop"),
    [([], 512), (["input.max_side=256"], 256), (["input.short_side=640"], 640)],
)
def test_the_crop_that_the_warning_names_is_neither_shrunk_nor_enlarged(data, settings, crop):
    loaded = load_coco(data, "train")
    slides = replace(loaded, images=(slide(loaded.images[0], 10_000, 100, 12),))
    run = override(tiny(), settings)
    assert shrink_warning(slides, run).endswith(f"--set input.crop={crop}")
    run = override(run, [f"input.crop={crop}"])
    assert input_scale((10_000, 10_000), run.input).tolist() == [1, 1]
    original = shrink_warning(slides, override(preset("tiny-original"), ["input.max_side=512"]))
    assert original.endswith("use --preset auto")


def test_a_model_of_crops_tiles_larger_images_at_the_side_of_the_crop(data):
    def side(settings, image_hw, training=None):
        learned = {"image_side": 64} if training is None else training
        card = ModelCard(override(CROP, settings), categories, {}, learned)
        return Predictor(None, card, torch.device("cpu"), tile="auto").tile_side(image_hw)

    categories = load_coco(data, "train").categories
    assert side([], (200, 240), {"steps": 7}) == 64  # of a checkpoint
    # A whole image that max_side shrinks would have another scale than its crops had.
    assert side(["input.max_side=64"], (70, 80)) == 64
    assert side(["input.max_side=64", "input.crop=0"], (70, 80)) is None
    assert side([], (200, 240)) == 64
    assert side([], (70, 80)) is None
    assert side(["input.short_side=128"], (200, 240)) == 64
    assert side(["input.short_side=128", "input.crop=0"], (200, 240)) is None


def stitched(folder, slides, tiles):
    """Write a COCO folder of square slides, each of `tiles` x `tiles` drawn images of 240 px."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    parts = [draw_objects(rng, 240, 240) for _ in range(8)]
    pictures = [paint(rng, 240, 240, objects) for objects in parts]
    categories = [{"id": key, "name": name} for key, name in TINY_CATEGORIES.items()]
    for split, number, side in (("train", slides, tiles), ("val", 1, 4)):
        document = {"images": [], "annotations": [], "categories": categories}
        for image_id in range(1, number + 1):
            chosen = rng.integers(len(parts), size=(side, side))
            rows = [np.concatenate([pictures[n] for n in row], axis=1) for row in chosen]
            name = f"{split}_{image_id}.png"
            cv2.imwrite(str(folder / "images" / name), np.concatenate(rows)[:, :, ::-1])
            document["images"].append(
                {"id": image_id, "file_name": name, "width": side * 240, "height": side * 240}
            )
            for (row, column), part in np.ndenumerate(chosen):
                for category, polygon in parts[part]:
                    moved = polygon + np.array([column, row]) * 240
                    key = len(document["annotations"]) + 1
                    document["annotations"].append(coco_annotation(key, image_id, category, moved))
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(document))
    return folder


_MEASURED = """
import resource, sys
from polarmask.cli import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def train_measured(data, out, *settings):
    """Train in a process of its own and return its peak memory in MB."""
    sets = [flag for setting in settings for flag in ("--set", setting)]
    command = [sys.executable, "-c", _MEASURED, "train", "--preset", "tiny", *sets]
    done = subprocess.run(
        [*command, "--data", str(data), "--out", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.rpartition("peak ")[2])


@pytest.mark.slow
def test_slides_are_learned_in_memory_that_does_not_grow_with_them(tmp_path):
    settings = ["input.crop=256", "model.channels=32", "model.tower_depth=1"]
    one, four = stitched(tmp_path / "one", 1, 16), stitched(tmp_path / "four", 4, 16)
    few = train_measured(one, tmp_path / "a", *settings, "optim.epochs=0.08")
    out, often = tmp_path / "b", ["optim.epochs=0.16", "validate_epochs=0.16"]
    many = train_measured(four, out, *settings, *often)
    assert many < few + 60  # a slide takes 44 MB as pixels, its objects some more
    assert not (out / "pixels").exists()
    card = read_card(out / "model")
    steps = 0.16 * 4 * 15 * 15 / card.config.optim.batch_size
    assert (card.training["image_side"], card.training["steps"]) == (256, steps)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    [judged] = (out / "validation.jsonl").read_text().splitlines()
    again = evaluate(Predictor.load(out / "model", tile="auto"), four)
    assert again.mask_ap == pytest.approx(json.loads(judged)["mask_ap"], abs=1e-6)
