"""What `polarmask inspect` reports of data, against data whose answer is known."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from factories import make_tiny_coco
from polarmask.cli import main
from polarmask.config.overrides import override
from polarmask.config.presets import tiny
from polarmask.data.coco import load_coco
from polarmask.evaluation.inspect_data import (
    RAY_COUNTS,
    inspect_data,
)
from polarmask.evaluation.inspection_text import describe
from polarmask.evaluation.recommend import recommend, recommend_for
from polarmask.report.inspection import inspection_page, worst_overlays


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = make_tiny_coco(tmp_path_factory.mktemp("inspect"), images=6, val_images=2)
    settings = ("input.intensity=bit_depth", "input.bits=12")
    return replace(load_coco(folder, "train"), input_settings=settings)


@pytest.fixture(scope="module")
def inspection(data):
    return inspect_data(data, tiny())


def bounds(*values):
    return dict(zip(RAY_COUNTS, values, strict=True))


def test_every_object_is_counted_once(data, inspection):
    objects = [a for image in data.images for a in image.annotations if not a.crowd]
    assert inspection.instances == len(objects)
    assert sum(inspection.size_counts) == len(objects)
    assert inspection.images == inspection.total_images == len(data.images)


def test_more_rays_never_fit_worse(inspection):
    ious = [bound.mean_iou for bound in inspection.bounds]
    assert ious == sorted(ious)
    ap_of = {result.name: result.ap for result in inspection.evaluation.per_category}
    assert ap_of["ellipse"] > 0.95 > ap_of["crescent"]  # a crescent's centre lies outside it
    assert inspection.evaluation.mask_ap == pytest.approx(inspection.bounds[1].mask_ap)


def test_the_worst_come_first_and_are_drawn(data, inspection):
    ious = [iou for _, _, iou in inspection.worst]
    assert ious == sorted(ious)
    assert len(ious) == inspection.instances
    first = worst_overlays(inspection, data)[0]
    assert f"IoU {ious[0]:.2f}" in first[2]


def two_squares(folder):
    """Return a picture of one object: squares of 40 x 40 and 30 x 30 pixels, apart."""
    squares = [[10, 10, 50, 10, 50, 50, 10, 50], [60, 60, 90, 60, 90, 90, 60, 90]]
    area = 40 * 40 + 30 * 30
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "pair"}],
        "annotations": [
            {
                **{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": area},
                **{"bbox": [10, 10, 80, 80], "segmentation": squares},
            }
        ],
    }
    (folder / "images").mkdir()
    Image.new("RGB", (100, 100)).save(folder / "images" / "a.png")
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return load_coco(folder, "train")


@pytest.mark.parametrize(("parts", "lowest", "highest"), [("largest", 0.6, 0.64), ("all", 0.97, 1)])
def test_bound_counts_the_parts_that_are_learned(tmp_path, parts, lowest, highest):
    run = override(tiny(), ["model.box_branch=true", f"labels.parts={parts}"])
    seen = inspect_data(two_squares(tmp_path), run)
    assert seen.in_parts == 1
    assert lowest <= seen.bounds[1].mean_iou <= highest  # the large square is 0.64 of the object
    box_4 = seen.predictions[1].boxes_xywh[0]
    end = 90 if parts == "all" else 50
    np.testing.assert_allclose(box_4, [10, 10, end - 10, end - 10], atol=1)


def test_a_part_of_large_data_is_spread_over_it(data):
    part = inspect_data(data, tiny(), max_images=2)
    assert (part.images, part.total_images) == (2, 6)
    assert set(part.predictions) <= {data.images[0].id, data.images[3].id}


def test_recommended_settings_can_be_given_to_set(inspection):
    chosen = inspection.recommendation
    run = override(tiny(), chosen.overrides())
    assert run == chosen.apply(tiny())
    assert (run.model.strides, run.labels.level_ranges) == (chosen.strides, chosen.level_ranges)
    assert (run.input.intensity, run.input.bits) == ("bit_depth", 12)


@pytest.mark.parametrize(
    ("side", "reach", "strides"),
    [
        (10, 12, (2, 4, 8)),
        (12, 12, (4, 8, 16)),
        (24, 60, (8, 16, 32)),
        (24, 500, (8, 16, 32, 64)),
        (60, 5000, (16, 32, 64, 128, 256)),
    ],
)
def test_strides_follow_the_sizes(side, reach, strides):
    found = recommend(np.full(20, side), np.full(20, reach), bounds(0.8, 0.9, 0.92))
    assert found.strides == strides
    assert found.level_ranges[0] == (0, 8 * strides[0])
    assert found.level_ranges[-1] == (8 * strides[-2], float("inf"))


@pytest.mark.parametrize(
    ("ious", "rays"), [((0.95, 0.96, 0.97), 18), ((0.8, 0.9, 0.92), 36), ((0.7, 0.8, 0.92), 72)]
)
def test_ray_count_is_the_smallest_that_is_good_enough(ious, rays):
    assert recommend(np.full(9, 20.0), np.full(9, 20.0), bounds(*ious)).num_rays == rays


def test_sizes_are_those_of_the_network_s_input(data):
    small = inspect_data(data, tiny())
    twice = replace(tiny().input, short_side=2 * data.images[0].height)
    large = inspect_data(data, replace(tiny(), input=twice))
    assert large.side_quantiles[1] == pytest.approx(2 * small.side_quantiles[1], rel=0.02)


def test_page_and_text_hold_the_answer(data, inspection):
    page = inspection_page(inspection, data, config=tiny())
    assert len(page) < 2_000_000
    for text in (page, describe(inspection)):
        assert f"{inspection.bounds[1].mask_ap:.3f}" in text
        assert "model.strides=" in text


def test_command_prints_and_draws(data, tmp_path, capsys):
    assert main(["inspect", str(data.root), "--preset", "tiny", "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert f"{len(data.images)} of {len(data.images)} images" in printed
    assert (tmp_path / "o" / "inspection.html").is_file()
    with Image.open(tmp_path / "o" / "worst.jpg") as sheet:
        assert min(sheet.size) > 400


def test_sampled_images_have_objects_even_if_few_do(data, monkeypatch):
    monkeypatch.setattr("polarmask.evaluation.recommend._SAMPLED_IMAGES", 2)
    empty = [replace(image, annotations=()) for image in data.images]
    sparse = replace(data, images=(*empty, data.images[0], *empty))
    alone = replace(data, images=data.images[:1])
    assert recommend_for(sparse, tiny()) == recommend_for(alone, tiny())
    assert recommend_for(alone, tiny()) != recommend_for(data, tiny())
