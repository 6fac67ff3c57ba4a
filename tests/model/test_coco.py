import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from factories import TINY_CATEGORIES, crescent, make_tiny_coco, rle_from_bitmap
from polarmask.data.coco import CocoData, load_coco
from polarmask.data.images import read_image
from polarmask.data.summary import Problem, describe_problems
from polarmask.errors import DataError
from polarmask.geometry.masks import (
    bitmap_from_rle,
    rle_area,
    rle_from_segmentation,
    rle_iou,
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_tiny_coco(tmp_path_factory.mktemp("drawn"), images=4, val_images=1)


@pytest.fixture
def tiny(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "a folder")


def edit(folder, change, split="train"):
    """Change the annotation file in place and return its document."""
    path = folder / "annotations" / f"instances_{split}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return document


def kinds(data: CocoData):
    return [problem.kind for problem in data.problems]


def ids(data: CocoData):
    return {annotation.id for image in data.images for annotation in image.annotations}


def test_good_data_loads_whole_and_without_problems(tiny):
    data = load_coco(tiny, "train", check_pixels=True)
    document = edit(tiny, lambda document: None)
    assert data.problems == ()
    assert [image.id for image in data.images] == [image["id"] for image in document["images"]]
    assert ids(data) == {annotation["id"] for annotation in document["annotations"]}
    assert {category.id: category.name for category in data.categories} == TINY_CATEGORIES
    assert [category.id for category in data.categories] == sorted(TINY_CATEGORIES)


def test_polygons_boxes_and_areas_are_those_drawn(tiny):
    data = load_coco(tiny, "train")
    raw = {entry["id"]: entry for entry in edit(tiny, lambda document: None)["annotations"]}
    for image in data.images:
        for annotation in image.annotations:
            entry = raw[annotation.id]
            assert data.categories[annotation.category].id == entry["category_id"]
            [part] = annotation.parts
            assert part.dtype == np.float64
            assert part.reshape(-1).tolist() == entry["segmentation"][0]
            x0, y0, x1, y1 = annotation.bbox
            # The file's coordinates are rounded to 0.01 px.
            assert [x0, y0, x1 - x0, y1 - y0] == pytest.approx(entry["bbox"], abs=0.02)
            assert annotation.area == pytest.approx(entry["area"], rel=0.01)


def test_drawn_pixels_lie_where_the_polygons_say(tiny):
    data = load_coco(tiny, "val")
    [image] = data.images
    picture = read_image(data.image_path(image))
    assert picture.shape == (image.height, image.width, 3)
    segmentation = tuple(annotation.parts[0] for annotation in image.annotations)
    rle = rle_from_segmentation(segmentation, (image.height, image.width))
    bright = rle_from_bitmap(picture.max(axis=2) > 120)
    assert rle_iou([rle], [bright])[0, 0] > 0.93


def break_first(**fields):
    return lambda document: document["annotations"][0].update(fields)


SQUARE = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]
RLE = dict(rle_from_bitmap(np.pad(np.ones((9, 9)), 5)))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(break_first(segmentation=[]), "empty_segmentation", id="no-polygon"),
        pytest.param(break_first(segmentation=None), "empty_segmentation", id="null"),
        pytest.param(
            break_first(segmentation={"size": [96, 128], "counts": [96 * 128]}),
            "empty_segmentation",
            id="rle-without-a-pixel",
        ),
        pytest.param(break_first(segmentation=[SQUARE[:4]]), "short_polygon", id="two-points"),
        pytest.param(break_first(segmentation=[[]]), "short_polygon", id="no-points"),
        pytest.param(
            break_first(segmentation=[[*SQUARE[:4], *SQUARE[:2]]]),
            "short_polygon",
            id="closed-line",
        ),
        pytest.param(break_first(segmentation=[SQUARE[:7]]), "odd_coordinates", id="odd"),
        pytest.param(
            break_first(segmentation=[[*SQUARE[:7], float("nan")]]), "bad_coordinates", id="nan"
        ),
        pytest.param(
            break_first(segmentation=[[*SQUARE[:7], "far"]]), "bad_coordinates", id="text"
        ),
        pytest.param(
            break_first(segmentation=[[SQUARE[:2], SQUARE[2:4], SQUARE[4:6], SQUARE[6:]]]),
            "bad_coordinates",
            id="nested-pairs",
        ),
        pytest.param(
            break_first(segmentation=[[*SQUARE, 1e9, 5.0]]), "bad_coordinates", id="stray-billion"
        ),
        pytest.param(break_first(segmentation=SQUARE), "malformed_segmentation", id="flat-list"),
        pytest.param(break_first(segmentation="SQUARE"), "malformed_segmentation", id="string"),
        pytest.param(break_first(segmentation=[SQUARE, RLE]), "mixed_segmentation", id="mixed"),
        pytest.param(break_first(segmentation=RLE), "rle_wrong_size", id="rle-of-other-size"),
        pytest.param(
            break_first(segmentation={"size": [96, 128], "counts": [5]}), "bad_rle", id="short-rle"
        ),
        pytest.param(
            break_first(segmentation=[[5.0, 5.0, 9.0, 5.0, 7.0, 5.0]]), "zero_area", id="flat"
        ),
        pytest.param(
            break_first(segmentation=[[value + 128 for value in SQUARE]]),
            "box_outside_image",
            id="polygon-outside",
        ),
        pytest.param(break_first(category_id=3), "unknown_category", id="unknown-category"),
        pytest.param(break_first(image_id=999), "unknown_image", id="unknown-image"),
        pytest.param(break_first(category_id="two"), "malformed_annotation", id="text-as-id"),
        pytest.param(break_first(image_id=2**63), "malformed_annotation", id="id-of-65-bits"),
        pytest.param(break_first(iscrowd="no"), "bad_iscrowd", id="iscrowd"),
        pytest.param(
            lambda document: document["annotations"].__setitem__(0, "?"),
            "malformed_annotation",
            id="no-object",
        ),
    ],
)
def test_a_bad_annotation_is_left_out_and_reported(tiny, change, kind):
    before = ids(load_coco(tiny, "train"))
    edit(tiny, change)
    data = load_coco(tiny, "train")
    assert kinds(data) == [kind]
    assert ids(data) == before - {101}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param(
            {"segmentation": [SQUARE, SQUARE[:4]], "bbox": None}, "short_polygon", id="stray-part"
        ),
        pytest.param({"bbox": [0, 0, 0, 0]}, "bbox_mismatch", id="box"),
        pytest.param(
            {"segmentation": [[value - 9 for value in SQUARE]], "bbox": None},
            "box_partly_outside_image",
            id="polygon",
        ),
    ],
)
def test_a_mendable_annotation_is_reported_and_kept(tiny, fields, kind):
    edit(tiny, break_first(**fields))
    data = load_coco(tiny, "train")
    assert kinds(data) == [kind]
    assert 101 in ids(data)


def test_outlines_are_clipped_to_the_image_and_parts_outside_are_dropped(tiny):
    left = [value - 12 for value in SQUARE]
    beyond = [value - 40 for value in SQUARE]
    edit(tiny, break_first(segmentation=[left, beyond, SQUARE]))
    annotation = load_coco(tiny, "train").images[0].annotations[0]
    assert [part.reshape(-1).tolist() for part in annotation.parts] == [
        SQUARE,
        [0, 0, 8, 0, 8, 8, 0, 8],
    ]
    assert annotation.bbox == (0, 0, 20, 20)
    assert annotation.area == 16 * 16 + 8 * 8
    assert len(annotation.segmentation) == 3


def test_rounding_over_the_edge_is_no_problem(tiny):
    edit(tiny, break_first(segmentation=[[-0.5, 4, 20, 4, 20, 20]], bbox=[-0.5, 4, 20.5, 16]))
    assert load_coco(tiny, "train").problems == ()


def test_crowd_regions_are_kept_without_parts(tiny):
    bitmap = np.zeros((96, 128))
    bitmap[10:30, 40:90] = 1
    rle = dict(rle_from_bitmap(bitmap))
    edit(tiny, break_first(segmentation=rle, iscrowd=1, bbox=[40, 10, 50, 20]))
    data = load_coco(tiny, "train")
    region = data.images[0].annotations[0]
    assert data.problems == ()
    assert region.crowd
    assert region.parts == ()
    assert (region.area, region.bbox) == (1000, (40, 10, 90, 30))
    assert region.segmentation == rle


@pytest.mark.parametrize("compressed", [True, False])
def test_objects_given_as_rle_get_outlines(tiny, compressed):
    polygon = 16 * crescent() + 40
    rle = rle_from_segmentation((polygon,), (96, 128))
    bitmap = bitmap_from_rle(rle)
    columns = bitmap.T.reshape(-1).astype(int)
    borders = [0, *np.flatnonzero(np.diff(columns, prepend=0)), columns.size]
    counts = rle["counts"] if compressed else np.diff(borders).tolist()
    edit(tiny, break_first(segmentation={"size": [96, 128], "counts": counts}, bbox=None))
    data = load_coco(tiny, "train")
    annotation = data.images[0].annotations[0]
    assert data.problems == ()
    assert annotation.segmentation == rle
    assert annotation.area == rle_area(rle)
    assert rle_iou([rle_from_segmentation(annotation.parts, (96, 128))], [rle])[0, 0] == 1


def rename_first(name):
    return lambda document: document["images"][0].update(file_name=name)


@pytest.mark.parametrize(
    ("change", "kind", "lost"),
    [
        pytest.param(rename_first("gone.png"), "missing_image", 11, id="missing"),
        pytest.param(rename_first("../annotations/x.png"), "unsafe_file_name", 11, id="climbs"),
        pytest.param(rename_first("/etc/hostname"), "unsafe_file_name", 11, id="absolute"),
        pytest.param(rename_first("..\\x.png"), "unsafe_file_name", 11, id="backslash"),
        pytest.param(rename_first(""), "unsafe_file_name", 11, id="nameless"),
        pytest.param(rename_first("train_001.png"), "duplicate_file_name", 12, id="same-file"),
        pytest.param(
            lambda document: document["images"][0].update(width=127),
            "image_size_mismatch",
            11,
            id="other-size",
        ),
        pytest.param(
            lambda document: document["images"][0].pop("height"),
            "malformed_image",
            11,
            id="no-height",
        ),
        pytest.param(
            lambda document: document["images"][0].update(width=0),
            "malformed_image",
            11,
            id="no-width",
        ),
    ],
)
def test_a_bad_image_is_left_out_with_its_annotations(tiny, change, kind, lost):
    before = load_coco(tiny, "train")
    edit(tiny, change)
    data = load_coco(tiny, "train")
    assert kind in kinds(data)
    assert lost in {image.id for image in before.images} - {image.id for image in data.images}
    gone = next(image for image in before.images if image.id == lost)
    assert not {annotation.id for annotation in gone.annotations} & ids(data)


def test_of_images_with_the_same_id_the_first_is_used(tiny):
    edit(tiny, lambda document: document["images"][1].update(id=11))
    data = load_coco(tiny, "train")
    assert [image.file_name for image in data.images if image.id == 11] == ["train_000.png"]
    assert "duplicate_image_id" in kinds(data)


def test_of_categories_with_the_same_id_the_first_is_used(tiny):
    edit(tiny, lambda document: document["categories"].append({"id": 2, "name": "egg"}))
    edit(tiny, lambda document: document["categories"].append({"id": 12, "name": "star"}))
    edit(tiny, lambda document: document["categories"].append({"name": "nothing"}))
    data = load_coco(tiny, "train")
    assert data.categories[0].name == "ellipse"
    assert sorted(kinds(data)) == [
        "duplicate_category_id",
        "duplicate_category_name",
        "malformed_category",
    ]


def test_a_truncated_image_is_found_when_pixels_are_checked(tiny):
    path = tiny / "images" / "train_000.png"
    path.write_bytes(path.read_bytes()[:-2000])
    assert load_coco(tiny, "train").problems == ()
    assert kinds(load_coco(tiny, "train", check_pixels=True)) == ["undecodable_image"]
    with pytest.raises(DataError, match=r"train_000\.png is no readable image"):
        read_image(path)


@pytest.mark.parametrize("check_pixels", [False, True])
def test_a_file_that_is_no_image_is_reported(tiny, check_pixels):
    (tiny / "images" / "train_000.png").write_text("<html>404</html>")
    assert kinds(load_coco(tiny, "train", check_pixels=check_pixels)) == ["undecodable_image"]


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_swapped_sizes_hint_at_orientation_only_where_there_is_one(tiny, orientation):
    path = tiny / "images" / "train_000.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)
    edit(tiny, lambda document: document["images"][0].update(width=96, height=128))
    [problem] = load_coco(tiny, "train").problems
    assert problem.kind == "image_size_mismatch"
    assert ("EXIF" in problem.detail) == (orientation == 6)


def test_an_orientation_is_noted_and_the_image_used_as_stored(tiny):
    path = tiny / "images" / "train_000.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(path) as image:
        image.save(path, exif=exif)
    data = load_coco(tiny, "train")
    assert [(problem.kind, problem.kept) for problem in data.problems] == [("orientation", True)]
    assert data.images[0].file_name == path.name


def remove(*parts):
    return lambda folder: shutil.rmtree(folder.joinpath(*parts))


def write(text):
    return lambda folder: (folder / "annotations" / "instances_train.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(remove(), "does not exist", id="no-folder"),
        pytest.param(remove("images"), r"images does not exist.*annotations/", id="no-images"),
        pytest.param(remove("annotations"), r"instances_train\.json does not exist", id="no-json"),
        pytest.param(write("{"), "no readable JSON", id="half-json"),
        pytest.param(write("[]"), "no list 'images'", id="json-of-other-form"),
        pytest.param(write('{"images": [], "annotations": {}}'), "'annotations'", id="no-list"),
        pytest.param(write('{"images": [], "images": []}'), "a second 'images'", id="two-lists"),
        pytest.param(
            write('{"images": [], "annotations": [], "categories": []}'),
            "no usable image",
            id="no-image",
        ),
        pytest.param(
            lambda folder: edit(folder, lambda document: document["annotations"].clear()),
            "no usable object",
            id="zero-annotations",
        ),
        pytest.param(
            lambda folder: edit(
                folder,
                lambda document: [entry.update(iscrowd=1) for entry in document["annotations"]],
            ),
            "no usable object",
            id="only-crowd",
        ),
        pytest.param(
            lambda folder: [path.unlink() for path in (folder / "images").iterdir()],
            "missing_image: 4",
            id="all-files-missing",
        ),
    ],
)
def test_data_of_which_nothing_is_usable_raises(tiny, damage, reason):
    damage(tiny)
    with pytest.raises(DataError, match=reason):
        load_coco(tiny, "train")


def test_images_without_objects_are_kept_as_background(tiny):
    def empty_first(document):
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] != 11]

    edit(tiny, empty_first)
    data = load_coco(tiny, "train")
    assert data.images[0].annotations == ()
    assert data.problems == ()


def test_annotations_do_not_stay_in_memory(tiny):
    def many(document):
        image, objects = document["images"][0], document["annotations"][:3]
        for number in range(600):
            name = f"{number}.png"
            os.link(tiny / "images" / image["file_name"], tiny / "images" / name)
            document["images"].append({**image, "id": 1000 + number, "file_name": name})
            for row, entry in enumerate(objects):
                ids = {"id": 1000 + 3 * number + row, "image_id": 1000 + number}
                document["annotations"].append({**entry, **ids})

    edit(tiny, many)
    load_coco(tiny, "train")  # what is made once is not counted
    tracemalloc.start()
    data = load_coco(tiny, "train")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(image.annotations) for image in data.images) > 1800
    assert held < 500 * len(data.images)


def test_images_may_lie_in_subfolders(tiny):
    (tiny / "images" / "deep").mkdir()
    (tiny / "images" / "train_000.png").rename(tiny / "images" / "deep" / "a.png")
    edit(tiny, rename_first("deep/a.png"))
    assert load_coco(tiny, "train").problems == ()


def test_problems_are_counted_by_kind_with_the_first_places():
    problems = [Problem("image", "missing_image", f"image {at}", "gone") for at in range(5)]
    problems.append(Problem("object", "zero_area", "annotation 3", "flat", kept=True))
    first, second = describe_problems(problems).splitlines()
    gone = "image 0: gone; image 1: gone; image 2: gone"
    assert first == f"missing_image: 5 images left out - {gone}; and 2 more"
    assert second == "zero_area: 1 object kept - annotation 3: flat"
    assert describe_problems([]) == "no problems found"
