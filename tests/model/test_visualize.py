import cv2
import numpy as np
import pytest

from factories import ellipse, make_instances, make_tiny_coco, star
from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.inference.drawing import (
    ORANGE,
    PALETTE,
    SKY,
    Shape,
    contact_sheet,
    draw_shapes,
    encode_jpeg,
    resized,
    shapes_of_annotations,
)


def grey(height, width):
    return np.full((height, width, 3), 128, dtype=np.uint8)


def changed(picture):
    return (picture != 128).any(axis=2)


def test_fillings_cover_the_polygon_at_the_pictures_scale():
    square = np.array([[10.0, 20.0], [60.0, 20.0], [60.0, 70.0], [10.0, 70.0]])
    picture = draw_shapes(grey(100, 200), [Shape((square,), SKY)], side=400)
    assert picture.shape == (200, 400, 3)
    inside = changed(picture)
    assert inside[42:138, 22:118].all()
    # One pixel for the outline, one for its soft edge.
    assert not inside[:38].any()
    assert not inside[:, :18].any()
    assert not inside[142:].any()
    assert not inside[:, 122:].any()


def test_fillings_are_as_transparent_as_asked():
    square = np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 100.0], [0.0, 100.0]])
    picture = draw_shapes(grey(100, 100), [Shape((square,), (228, 28, 128), opacity=0.5)], side=100)
    np.testing.assert_allclose(picture[50, 50], [178, 78, 128], atol=1)


def test_parts_that_overlap_leave_no_hole():
    square = np.array([[10.0, 10.0], [60.0, 10.0], [60.0, 60.0], [10.0, 60.0]])
    picture = draw_shapes(grey(100, 100), [Shape((square, square + 20), SKY)], side=100)
    assert changed(picture)[12:58, 12:58].all()


@pytest.mark.parametrize(
    ("hw", "expected"),
    [
        ((256, 256), (768, 768)),
        ((96, 128), (576, 768)),
        ((900, 1200), (900, 1200)),
        ((100, 70_000), (12, 8192)),  # wider than a JPEG can be
    ],
)
def test_overlays_are_neither_small_nor_huge(hw, expected):
    assert draw_shapes(grey(*hw), []).shape[:2] == expected


def test_the_given_image_is_never_painted_on():
    image = grey(800, 800)
    draw_shapes(image, [Shape((300 * ellipse() + 400,), SKY)])
    assert (image == 128).all()


def test_large_photos_get_lines_in_proportion():
    image = grey(3000, 4000)
    shapes = [Shape((600 * star() + 1500,), ORANGE, opacity=0.0)]
    picture = resized(draw_shapes(image, shapes), 1000)
    # Without a filling only the outline shows; shrunk to a screen it is still there.
    assert (np.abs(picture.astype(int) - 128).max(axis=2) > 60).sum() > 500


def test_shapes_outside_the_image_do_no_harm():
    shapes = [
        Shape((50 * ellipse() + (-200, -200),), SKY, label="far away"),
        Shape((50 * ellipse() + (190, 90),), SKY, center=np.array([190.0, 90.0])),
        Shape((), SKY),
    ]
    assert changed(draw_shapes(grey(100, 200), shapes)).any()


def test_rays_run_from_the_centre_to_every_vertex():
    instances = make_instances((100, 100), [(40 * star() + 50, 0.9, 1)])
    [plain] = instances.shapes()
    [with_rays] = instances.shapes(rays=True)
    assert plain.center is None
    center = instances.centers[0]
    picture = draw_shapes(grey(100, 100), [with_rays], side=800)
    without = draw_shapes(grey(100, 100), [plain], side=800)
    half_way = np.round((instances.polygons[0] + center) / 2 * 8 - 0.5).astype(int)
    assert all((picture[y, x] != without[y, x]).any() for x, y in half_way)


def test_scores_below_the_threshold_are_left_out():
    objects = [(10 * ellipse() + 20, 0.9, 1), (10 * ellipse() + 60, 0.2, 1)]
    shapes = make_instances((100, 100), objects).shapes(min_score=0.5)
    assert [shape.label for shape in shapes] == ["0.90"]


def test_categories_have_colours_of_their_own_and_a_lone_category_varies_them():
    objects = [(10 * ellipse() + 20, 0.9, 2), (10 * ellipse() + 60, 0.8, 5), (star() + 9, 0.7, 2)]
    shapes = make_instances((100, 100), objects).shapes()
    assert shapes[0].colour == shapes[2].colour != shapes[1].colour
    assert [shape.label for shape in shapes] == ["2 0.90", "5 0.80", "2 0.70"]
    alike = [(polygon, score, 2) for polygon, score, _ in objects]
    shapes = make_instances((100, 100), alike).shapes()
    assert len({shape.colour for shape in shapes}) == 3


def test_annotations_are_drawn_where_the_picture_shows_them(tmp_path):
    data = load_coco(make_tiny_coco(tmp_path, images=1, val_images=1), "train")
    [image] = data.images
    shapes = shapes_of_annotations(image, data.categories)
    assert len(shapes) == len(image.annotations)
    assert all(shape.colour in PALETTE for shape in shapes)
    picture = read_image(data.image_path(image))
    drawn = draw_shapes(picture, shapes, side=max(picture.shape))
    bright = picture.max(axis=2) > 120
    assert (drawn != picture).any(axis=2)[bright].mean() > 0.95


def test_labels_are_written_only_where_they_fit():
    def darkest(size):
        shape = Shape((size * ellipse() + (100, 50),), SKY, label="giraffe")
        return draw_shapes(grey(100, 200), [shape]).min()

    assert darkest(45) == 20
    assert darkest(3) > 20


def test_names_that_are_no_unicode_are_drawn():
    name = "caf\udce9"  # as Python reads a name in Latin-1 on a disk of today
    square = np.array([[5, 5], [90, 5], [90, 90], [5, 90]], dtype=float)
    picture = np.zeros((100, 100, 3), np.uint8)
    overlay = draw_shapes(picture, [Shape((square,), SKY, label=name)])
    without = draw_shapes(picture, [Shape((square,), SKY)])
    assert (overlay != without).any()
    sheets = [contact_sheet([picture], captions=[each]) for each in (name, " ")]
    assert (sheets[0] != sheets[1]).any()


def test_a_sheet_holds_every_picture_in_rows():
    pictures = [np.full((40, 80, 3), 10 * number, dtype=np.uint8) for number in range(5)]
    sheet = contact_sheet(pictures, captions=["a", "b", "c", "d", "e"], columns=2, cell=100)
    assert sheet.shape == (12 + 3 * (100 + 28 + 12), 12 + 2 * (100 + 12), 3)
    centers = [
        sheet[12 + 140 * row + 50, 12 + 112 * column + 50, 0]
        for row in range(3)
        for column in range(2)
    ]
    assert centers == [0, 10, 20, 30, 40, 245]


def test_jpeg_bytes_decode_to_the_same_colours():
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    picture[:] = ORANGE
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(picture), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(decoded[32, 32], ORANGE, atol=3)
