import time

import numpy as np
import pytest

from factories import rle_from_bitmap
from polarmask.geometry.masks import (
    bitmap_from_rle,
    rle_area,
    rle_from_segmentation,
    rle_iou,
)
from polarmask.geometry.outlines import OutlineError, polygon_area, read_outline

IMAGE_HW = (96, 128)
SQUARE = [20.0, 20.0, 50.0, 20.0, 50.0, 44.0, 20.0, 44.0]
BOX = [20, 20, 30, 24]


def read(segmentation, bbox=None, hw=IMAGE_HW, *, crowd=False):
    return read_outline({"segmentation": segmentation, "bbox": bbox}, hw, crowd=crowd)


@pytest.mark.parametrize(
    "bbox",
    [
        pytest.param([0, 0, 0, 0], id="zero"),
        pytest.param([value * 40 for value in BOX], id="larger-scale"),
        pytest.param([value / 128 for value in BOX], id="normalised"),
        pytest.param([20, 20, -30, -24], id="negative-size"),
        pytest.param([20, 20, 0, 24], id="no-width"),
        pytest.param([-900, -900, 30, 24], id="outside"),
        pytest.param([70, 70, 100, 94], id="corners-in-place-of-size"),
        pytest.param([float("nan"), 20, 30, 24], id="nan"),
    ],
)
@pytest.mark.parametrize("form", ["polygon", "rle"])
def test_a_box_that_is_not_the_outlines_is_noted_and_the_outline_kept(bbox, form):
    polygon = np.reshape(SQUARE, (-1, 2))
    rle = rle_from_segmentation((polygon,), IMAGE_HW)
    outline = read([SQUARE] if form == "polygon" else dict(rle), bbox)
    assert [kind for kind, _ in outline.notes] == ["bbox_mismatch"]
    assert outline.bbox == (20, 20, 50, 44)
    assert outline.area == 30 * 24


@pytest.mark.parametrize(
    "bbox",
    [
        pytest.param(BOX, id="exact"),
        pytest.param([19, 20, 32, 25], id="rounded"),
        pytest.param([20, 20, 30, 36], id="with-the-hidden-part"),
        pytest.param(None, id="null"),
        pytest.param([], id="empty"),
        pytest.param(["a", "b", "c", "d"], id="text"),
        pytest.param([10**400, 0, 1, 1], id="no-float"),
        pytest.param({"x": 20}, id="object"),
        pytest.param(7, id="number"),
    ],
)
def test_a_box_near_the_outline_and_none_at_all_need_no_note(bbox):
    assert read([SQUARE], bbox).notes == ()


def test_a_box_that_leaves_the_image_with_its_outline_is_no_second_problem():
    outline = read([[value - 35 for value in SQUARE]], [-15, -15, 30, 24])
    assert [kind for kind, _ in outline.notes] == ["box_partly_outside_image"]


def test_coordinates_divided_by_the_images_size_are_refused_with_the_way_back():
    with pytest.raises(OutlineError, match="multiply x by 128 and y by 96") as caught:
        read([[value / 128 for value in SQUARE], [-0.01, 0, 1.01, 0, 1, 1]])
    assert caught.value.kind == "normalised_coordinates"
    assert read([[0, 0, 1, 0, 1, 1, 0, 1]], hw=(1, 1)).area == 1


@pytest.mark.parametrize(
    "polygon",
    [
        pytest.param([20, 20, 90, 90, 90, 20, 20, 90], id="bow-tie"),
        pytest.param([20, 20, 55, 55, 90, 90, 90, 20, 55, 55, 20, 90], id="through-a-vertex"),
        pytest.param([10, 10, 100, 80, 100, 10, 10, 30], id="unequal-bow-tie"),
        pytest.param([60, 5, 86, 85, 18, 36, 102, 36, 34, 85], id="pentagram"),
        pytest.param([10, 20, 118, 21, 118, 20, 10, 21.5, 60, 70], id="thin-loop"),
        pytest.param([20, 20, 26, 26, 26, 20, 20, 26], id="small-bow-tie"),
    ],
)
def test_an_outline_that_crosses_itself_covers_what_pycocotools_fills(polygon):
    outline = read([polygon])
    truth = rle_from_segmentation((np.reshape(polygon, (-1, 2)),), IMAGE_HW)
    assert outline.area == pytest.approx(rle_area(truth))
    assert [kind for kind, _ in outline.notes] == ["self_crossing_outline"]
    # Of a pentagram, pycocotools leaves the middle out; outlines have no holes.
    covered = bitmap_from_rle(rle_from_segmentation(outline.parts, IMAGE_HW))
    assert not (bitmap_from_rle(truth) & ~covered).any()


def test_only_the_crossing_one_of_several_parts_is_traced():
    outline = read([SQUARE, [60, 20, 110, 70, 110, 20, 60, 70]])
    sizes = [len(part) for part in outline.parts]
    assert 4 in sizes
    assert max(sizes) > 4
    truth = rle_from_segmentation(outline.segmentation, IMAGE_HW)
    assert outline.area == pytest.approx(rle_area(truth))
    assert rle_iou([rle_from_segmentation(outline.parts, IMAGE_HW)], [truth])[0, 0] > 0.98


def test_outlines_that_do_not_cross_stay_as_they_are():
    """Thin, tiny and spiky ones, whose pixels differ much from their area."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = rng.integers(5, 30)
        gap = rng.uniform(0.2, 1, count)
        angle = 2 * np.pi * gap.cumsum() / gap.sum()
        radius = rng.uniform(0.3, 1, count) * rng.choice([0.5, 2, 10, 45])
        unit = np.stack([np.cos(angle), np.sin(angle) * rng.uniform(0.05, 1)], axis=1)
        polygon = radius[:, None] * unit + rng.uniform(47, 49, 2)
        outline = read([polygon.reshape(-1).tolist()])
        assert outline.notes == ()
        assert (outline.parts[0] == polygon).all()


@pytest.mark.parametrize(("noise", "side"), [(0.02, 300), (0.02, 12), (0.1, 300), (0.02, 0)])
def test_specks_of_a_mask_are_no_parts(noise, side):
    bitmap = np.random.default_rng(0).random((600, 800)) < noise
    bitmap[100 : 100 + side, 200 : 200 + side] = True
    started = time.process_time()
    outline = read(dict(rle_from_bitmap(bitmap)), hw=bitmap.shape)
    # 0.3 s; with every speck 5 s and more.
    assert time.process_time() - started < 2
    assert outline.area == bitmap.sum()
    assert 1 <= len(outline.parts) <= 100
    largest = outline.parts[0]
    if side:
        assert (largest.min(axis=0) < (201, 101)).all()
        assert (largest.max(axis=0) > (199 + side, 99 + side)).all()
    if len(outline.parts) == 1:
        x0, y0, x1, y1 = outline.bbox
        assert max(x1 - x0, y1 - y0) < side + 9
    if side == 300:
        assert len(outline.parts) == 1 or polygon_area(outline.parts[1]) > 8


def test_specks_given_as_polygons_are_no_parts():
    corner = np.random.default_rng(0).uniform(1, 90, (3000, 1, 2))
    specks = corner + np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    outline = read([SQUARE, *specks.reshape(3000, 8).tolist()])
    assert [part.reshape(-1).tolist() for part in outline.parts] == [SQUARE]
    assert len(outline.segmentation) == 3001


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        pytest.param([[], []], "short_polygon", id="empty-lists"),
        pytest.param([[[], []]], "bad_coordinates", id="nested-empty-lists"),
        pytest.param({}, "empty_segmentation", id="empty-object"),
        pytest.param(5, "malformed_segmentation", id="number"),
        pytest.param(True, "malformed_segmentation", id="true"),
        pytest.param([[None] * 6], "bad_coordinates", id="nulls"),
        pytest.param([[10**400] * 6], "bad_coordinates", id="no-floats"),
        pytest.param([[1e308, 5, 9, 5, 9, 1e308]], "bad_coordinates", id="infinite-size"),
        pytest.param([["x", 5, 9, 5, 9, 9]], "bad_coordinates", id="text"),
        pytest.param([SQUARE + SQUARE], "zero_area", id="twice-around-fills-nothing"),
        pytest.param({"counts": [96 * 128]}, "rle_wrong_size", id="rle-without-size"),
        pytest.param({"size": ["96", "128"], "counts": "0"}, "rle_wrong_size", id="size-as-text"),
        pytest.param({"size": [96, 128], "counts": [10**30]}, "bad_rle", id="huge-run"),
        pytest.param({"size": [96, 128], "counts": [5, "7"]}, "bad_rle", id="run-as-text"),
        pytest.param({"size": [96, 128], "counts": []}, "bad_rle", id="no-runs"),
        pytest.param({"size": [96, 128], "counts": ""}, "bad_rle", id="no-text"),
        pytest.param({"size": [96, 128], "counts": "\ud83d"}, "bad_rle", id="half-character"),
    ],
)
def test_what_is_no_outline_is_one_named_problem(segmentation, kind):
    with pytest.raises(OutlineError) as caught:
        read(segmentation)
    assert caught.value.kind == kind
