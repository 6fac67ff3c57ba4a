"""Objects of a large image are found once, whichever seams of tiles cut them."""

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import make_instances
from polarmask.errors import ConfigError
from polarmask.geometry.masks import bitmap_from_rle
from polarmask.inference.instances import Instances
from polarmask.inference.stage_clock import StageClock
from polarmask.inference.tiles import predict_tiled, tile_boxes, tile_side

RAYS = 64


def regions_of(images):
    """Find every connected region brighter than black, as far as it lies in the image."""
    return [_regions(image) for image in images]


def _regions(image):
    contours, _ = cv2.findContours(
        (image[..., 0] > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    polygons = [_resampled(contour[:, 0]) for contour in contours if len(contour) > 2]
    n = len(polygons)
    polygon_NR2 = np.array(polygons, dtype=np.float32).reshape(n, RAYS, 2)
    low, high = polygon_NR2.min(axis=1), polygon_NR2.max(axis=1)
    areas = [cv2.contourArea(polygon) for polygon in polygon_NR2]
    return Instances(
        image_hw=image.shape[:2],
        polygons=polygon_NR2,
        boxes_xywh=np.concatenate([low, high - low], axis=1),
        scores=np.array([0.5 + area / 1e6 for area in areas], dtype=np.float32),
        category_ids=np.ones(n, dtype=np.int64),
        category_names=("disk",) * n,
        centers=polygon_NR2.mean(axis=1),
        ray_lengths=np.ones((n, RAYS), dtype=np.float32),
    )


def _resampled(contour):
    rows = np.linspace(0, len(contour), RAYS, endpoint=False).astype(int)
    return contour[rows] + 0.5


def disks(hw, circles):
    image = np.zeros((*hw, 3), np.uint8)
    for x, y, radius in circles:
        cv2.circle(image, (x, y), radius, (255, 255, 255), cv2.FILLED)
    return image


def apart(circles):
    """Keep circles that touch no other before them."""
    kept = []
    for x, y, radius in circles:
        if all(np.hypot(x - a, y - b) > radius + c + 3 for a, b, c in kept):
            kept.append((x, y, radius))
    return kept


@given(
    circles=st.lists(
        st.tuples(st.integers(0, 399), st.integers(0, 299), st.integers(3, 70)), max_size=25
    ),
    side=st.integers(64, 200),
)
@settings(max_examples=40, deadline=None)
def test_each_object_is_found_once_and_whole(circles, side):
    circles = apart(circles)
    image = disks((300, 400), circles)
    found = predict_tiled(regions_of, image, side)
    regions = regions_of([image])[0]
    assert len(found) == len(regions)
    truths = [bitmap_from_rle(rle) for rle in regions.rle()]
    for rle in found.rle():
        mask = bitmap_from_rle(rle)
        best = max((mask & truth).sum() / (mask | truth).sum() for truth in truths)
        assert best > 0.9
    assert (np.diff(found.scores) <= 0).all()


def test_object_larger_than_a_tile_is_one_instance_of_several_polygons():
    image = disks((300, 400), [(200, 150, 120)])
    found = predict_tiled(regions_of, image, 128)
    assert len(found) == 1
    mask = bitmap_from_rle(found.rle()[0])
    assert mask.sum() == pytest.approx((image[..., 0] > 0).sum(), rel=0.03)
    np.testing.assert_allclose(found.boxes_xywh[0], [80, 30, 240, 240], atol=2)


def test_neighbours_are_not_joined_by_one_shape_over_all():
    """One tile sees three squares side by side, the next one shape over all, less sure of it."""
    row = [square(60, 20, 10), square(71, 20, 10), square(82, 20, 10)]
    over_all = np.array([[92, 20], [92, 30], [60, 30], [60, 20]], np.float32)
    by_left = {
        0: made_of(row, [0.9, 0.8, 0.7]),
        32: made_of([over_all - (32, 0)], [0.5]),
    }
    found = predict_tiled(lambda tiles: [by_left[int(tile[0, 0, 0])] for tile in tiles], ramp(), 96)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5])


def test_the_best_of_equal_shapes_is_kept():
    by_left = {
        0: made_of([square(70, 20, 12)], [0.6]),
        32: made_of([square(71 - 32, 20, 12)], [0.7]),
    }
    found = predict_tiled(lambda tiles: [by_left[int(tile[0, 0, 0])] for tile in tiles], ramp(), 96)
    assert found.scores.tolist() == pytest.approx([0.7])
    assert found.boxes_xywh.tolist() == [[71, 20, 12, 12]]


def test_the_limit_of_one_tile_is_that_of_the_image():
    one = made_of([square(70, 20, 12)], [0.6])
    by_left = {0: replace(one, cut_below=0.6), 32: one[:0]}
    found = predict_tiled(lambda tiles: [by_left[int(tile[0, 0, 0])] for tile in tiles], ramp(), 96)
    assert found.cut_below == 0.6


def test_only_the_best_of_all_tiles_are_joined_if_asked_so():
    left = made_of([square(8, 4 + 9 * n, 6) for n in range(5)], [0.9, 0.8, 0.3, 0.2, 0.1])
    right = made_of([square(80, 4 + 9 * n, 6) for n in range(4)], [0.7, 0.6, 0.5, 0.4])
    by_left = {0: left, 32: right}

    def find(tiles):
        return [by_left[int(tile[0, 0, 0])] for tile in tiles]

    found = predict_tiled(find, ramp(), 96, most=3)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found.cut_below == pytest.approx(0.7)
    everything = predict_tiled(find, ramp(), 96, most=9)
    assert (len(everything), everything.cut_below) == (9, 0)


def test_joining_ends_at_the_time_limit():
    """Most of it are pairs of neighbouring tiles that hold thousands of shapes on one place."""
    some = made_of([square(70, 20, 12)] * 300, np.linspace(0.9, 0.1, 300))
    by_left = {0: some, 32: replace(some, polygons=some.polygons - np.float32([32, 0]))}
    clock = StageClock(0.05)
    with pytest.raises(TimeoutError, match=r"more than 0\.05 s"):
        predict_tiled(
            lambda tiles: [by_left[int(tile[0, 0, 0])] for tile in tiles], ramp(), 96, clock=clock
        )
    assert 0.05 < clock.seconds["decode_rays"] < 10


def ramp():
    """An image of two tiles, whose pixels say where they are."""
    return np.broadcast_to(np.arange(128, dtype=np.uint8)[None, :, None], (64, 128, 3))


def square(x, y, side):
    return np.array([[x + side, y], [x + side, y + side], [x, y + side], [x, y]], np.float32)


def made_of(polygons, scores):
    return make_instances(
        (64, 96), [(polygon, score, 1) for polygon, score in zip(polygons, scores, strict=True)]
    )


@given(st.integers(1, 900), st.integers(1, 900), st.integers(64, 300))
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_image_and_overlap_by_a_quarter(rows, columns, side):
    boxes = tile_boxes((rows, columns), side)
    covered = np.zeros((rows, columns), bool)
    for x0, y0, x1, y1 in boxes:
        assert (x1 - x0, y1 - y0) == (min(side, columns), min(side, rows))
        covered[y0:y1, x0:x1] = True
    assert covered.all()
    lefts = sorted({box[0] for box in boxes})
    assert all(b - a <= round(side * 0.75) + 1 for a, b in pairwise(lefts))


def test_auto_tiles_what_is_much_larger_than_the_training_images():
    assert tile_side((320, 200), "auto", 256) is None
    assert tile_side((321, 200), "auto", 256) == 256
    assert tile_side((4000, 4000), "auto", 32) == 64
    assert tile_side((4000, 4000), "auto", None) is None
    assert tile_side((4000, 4000), 512, None) == 512
    assert tile_side((500, 500), 512, None) is None
    assert tile_side((4000, 4000), None, 256) is None
    with pytest.raises(ConfigError, match="too small"):
        tile_side((4000, 4000), 32, 256)
