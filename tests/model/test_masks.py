import cv2
import numpy as np
import pytest

from factories import crescent, ellipse, rle_from_bitmap, star
from polarmask.geometry.masks import (
    bitmap_from_rle,
    parse_rle,
    polygons_from_rle,
    rle_area,
    rle_box,
    rle_from_segmentation,
    rle_iou,
    rles_from_polygons,
    rles_from_whole_pixels,
)

SQUARE = np.array([[2.0, 1.0], [6.0, 1.0], [6.0, 4.0], [2.0, 4.0]])
RIGHT, DOWN = np.eye(2)


def pixels_whose_centre_is_inside(polygon, height, width):
    contour = polygon.astype(np.float32)[:, None]
    return np.array(
        [
            [cv2.pointPolygonTest(contour, (x + 0.5, y + 0.5), False) > 0 for x in range(width)]
            for y in range(height)
        ]
    )


def test_a_polygon_on_pixel_borders_covers_exactly_the_pixels_inside():
    [rle] = rles_from_polygons([SQUARE], (5, 8))
    expected = np.zeros((5, 8), dtype=bool)
    expected[1:4, 2:6] = True
    assert (bitmap_from_rle(rle) == expected).all()
    assert rle_area(rle) == 12
    assert rle_box(rle) == (2, 1, 6, 4)
    assert rle["size"] == [5, 8]
    assert isinstance(rle["counts"], str)


@pytest.mark.parametrize("shape", [ellipse, star, crescent])
def test_rasterised_shapes_agree_with_a_test_of_each_pixel_centre(shape):
    polygon = 30 * shape() + (41.3, 38.7)
    [rle] = rles_from_polygons([polygon], (80, 90))
    expected = pixels_whose_centre_is_inside(polygon, 80, 90)
    # COCO's rasteriser rounds corners to a fifth of a pixel, so some border pixels differ.
    assert (bitmap_from_rle(rle) != expected).sum() < 0.02 * expected.sum()


def test_each_polygon_becomes_an_object_of_its_own():
    rles = rles_from_polygons(np.stack([SQUARE, SQUARE + 1]), (8, 8))
    assert [rle_box(rle) for rle in rles] == [(2, 1, 6, 4), (3, 2, 7, 5)]
    assert rles_from_polygons(np.zeros((0, 36, 2), dtype=np.float32), (8, 8)) == []


def test_a_line_is_refused_because_the_codec_would_read_it_as_a_box():
    with pytest.raises(ValueError, match="3 vertices"):
        rles_from_polygons([SQUARE, SQUARE[:2]], (8, 8))


def test_polygons_of_one_object_are_united():
    rle = rle_from_segmentation((SQUARE, SQUARE + 1), (8, 8))
    assert rle_area(rle) == 12 + 12 - 6


def test_what_lies_outside_the_image_is_cut_off():
    rle = rle_from_segmentation((SQUARE - 4 * RIGHT,), (5, 8))
    assert rle_box(rle) == (0, 1, 2, 4)


def test_bitmaps_survive_the_round_trip():
    bitmap = np.random.default_rng(0).random((13, 7)) < 0.4
    assert (bitmap_from_rle(rle_from_bitmap(bitmap)) == bitmap).all()
    assert rle_area(rle_from_bitmap(np.zeros((3, 4)))) == 0


def test_iou_counts_shared_over_all_pixels():
    rles = rles_from_polygons([SQUARE, SQUARE + RIGHT, SQUARE + 3 * DOWN], (8, 8))
    iou = rle_iou(rles[:1], rles)
    np.testing.assert_allclose(iou, [[1, 9 / 15, 0]])
    assert rle_iou([], rles).shape == (0, 3)


def test_iou_with_a_crowd_region_is_the_share_of_the_detection_inside_it():
    detection, region = rles_from_polygons([SQUARE, SQUARE * 1.5], (8, 12))
    inside = (bitmap_from_rle(detection) & bitmap_from_rle(region)).sum()
    assert rle_iou([detection], [region], [True])[0, 0] == inside / 12


def test_compressed_and_uncompressed_rle_are_read_alike():
    bitmap = np.random.default_rng(1).random((40, 60)) < 0.5
    compressed = rle_from_bitmap(bitmap)
    columns = bitmap.T.reshape(-1).astype(int)
    borders = np.flatnonzero(np.diff(columns, prepend=0))
    runs = np.diff([0, *borders, columns.size]).tolist()
    assert parse_rle({"size": [40, 60], "counts": runs}, (40, 60)) == compressed
    assert parse_rle(dict(compressed), (40, 60)) == compressed


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param({"size": [4, 5], "counts": [20]}, "size", id="other-size"),
        pytest.param({"size": [5, 4], "counts": [19]}, "cover 19 of 20", id="too-short"),
        pytest.param({"size": [5, 4], "counts": [21, -1]}, ">= 0", id="negative-run"),
        pytest.param({"size": [5, 4], "counts": [10.0, 10.0]}, "whole", id="fractions"),
        pytest.param({"size": [5, 4]}, "neither", id="no-counts"),
        pytest.param({"size": [5, 4], "counts": "4"}, "cover", id="text-of-wrong-length"),
        pytest.param({"size": [5, 4], "counts": "\u1234"}, "no COCO", id="foreign-text"),
        pytest.param({"size": [5, 4], "counts": "oooooooooo0"}, "no COCO", id="endless-number"),
        pytest.param({"size": [5, 4], "counts": "o"}, "middle", id="cut-text"),
    ],
)
def test_rle_that_the_codec_would_overrun_on_is_refused(raw, reason):
    with pytest.raises(ValueError, match=reason):
        parse_rle(raw, (5, 4))


def test_traced_outlines_lie_an_eighth_of_a_pixel_inside_the_mask():
    [outline] = polygons_from_rle(rle_from_segmentation((SQUARE,), (5, 8)))
    assert (outline.min(axis=0) == (2.125, 1.125)).all()
    assert (outline.max(axis=0) == (5.875, 3.875)).all()


def test_tracing_and_filling_gives_the_mask_back():
    bitmap = bitmap_from_rle(
        rle_from_segmentation((25 * star() + 30, 8 * ellipse() + 70), (80, 90))
    )
    outlines = polygons_from_rle(rle_from_bitmap(bitmap))
    assert len(outlines) == 2
    assert (bitmap_from_rle(rle_from_segmentation(outlines, (80, 90))) == bitmap).all()


def test_a_mask_that_reaches_the_last_pixel_ends_with_the_image():
    corner = np.array([[3, 2], [6, 2], [6, 4], [3, 4]], dtype=float)
    filled = np.zeros((5, 7), dtype=bool)
    filled[2:, 3:] = True
    assert rles_from_whole_pixels([corner], (5, 7)) == [rle_from_bitmap(filled)]


def test_a_single_pixel_can_be_traced_and_holes_are_ignored():
    bitmap = np.zeros((9, 9), dtype=bool)
    bitmap[0, 0] = True
    bitmap[3:8, 3:8] = True
    bitmap[5, 5] = False
    outlines = polygons_from_rle(rle_from_bitmap(bitmap))
    assert sorted(len(outline) for outline in outlines) == [4, 4]
    assert polygons_from_rle(rle_from_bitmap(np.zeros((4, 4)))) == ()


def test_a_whole_pixel_mask_as_high_as_the_image_is_one_run():
    polygon = np.array([[2.0, 0.0], [5.0, 0.0], [5.0, 9.0], [2.0, 9.0]])
    expected = np.zeros((10, 8), dtype=bool)
    expected[:, 2:6] = True
    assert rles_from_whole_pixels([polygon], (10, 8)) == [rle_from_bitmap(expected)]


def test_whole_pixel_masks_are_those_of_a_bitmap_of_the_image():
    """Also where polygons cross themselves or have no area."""
    rng = np.random.default_rng(0)
    polygons = [rng.uniform((0, 0), (69, 59), (8, 2)) for _ in range(40)]
    polygons += [np.full((3, 2), 7.9), np.full((3, 2), 500.0), np.array([[3, 3], [9, 3], [5, 3]])]
    expected = []
    for polygon in polygons:
        bitmap = np.zeros((60, 70), np.uint8)
        cv2.drawContours(bitmap, [np.trunc(polygon).astype(np.int32)], -1, 1, cv2.FILLED)
        expected.append(rle_from_bitmap(bitmap))
    assert rles_from_whole_pixels(polygons, (60, 70)) == expected
