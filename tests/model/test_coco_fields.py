"""Values of annotation files that other programs write, or that no program should."""

import copy
import json
import os
import random

import numpy as np
import pytest
from PIL import Image

from polarmask.data.annotation_index import unique_ids
from polarmask.data.coco import load_coco
from polarmask.data.coco_fields import read_flag, read_integer
from polarmask.data.summary import describe_problems
from polarmask.errors import DataError
from polarmask.system.files import sha256_of_files, tree_sha256


def make_folder(folder, edit=lambda document: None, names=("0.png", "1.png")):
    """Two images of 64x48 with two squares each."""
    document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number, name in enumerate(names, start=1):
        Image.new("RGB", (64, 48)).save(folder / "images" / os.fsdecode(name))
        size = {"width": 64, "height": 48}
        document["images"].append({"id": number, "file_name": name, **size})
        for x in (4, 30):
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [x, 5, 20, 20],
                    "segmentation": [[x, 5, x + 20, 5, x + 20, 25, x, 25]],
                }
            )
    edit(document)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return folder


def load(tmp_path, edit=lambda document: None, **names):
    return load_coco(make_folder(tmp_path / "data", edit, **names), "train", check_pixels=True)


def kinds(data):
    return [problem.kind for problem in data.problems]


def ids(data):
    return [annotation.id for image in data.images for annotation in image.annotations]


def each(group, key, value):
    """Set a key of every entry of a list: a value, or what a function returns of the index."""

    def edit(document):
        for number, entry in enumerate(document[group]):
            entry[key] = value(number) if callable(value) else value

    return edit


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        pytest.param(lambda n: 0, [0, 1, 2, 3], id="all-zero"),
        pytest.param(lambda n: n % 2, [0, 1, 2, 3], id="restarting"),
        pytest.param(lambda n: None, [1, 2, 3, 4], id="none"),
        pytest.param(lambda n: f"uuid-{n}", [1, 2, 3, 4], id="text"),
        pytest.param(lambda n: 2**63 - 1, [2**63 - 1, 1, 2, 3], id="largest"),
        pytest.param(lambda n: 10**30 + n, [1, 2, 3, 4], id="above-64-bits"),
        pytest.param(lambda n: [3, 3, 1, 9][n], [3, 2, 1, 9], id="one-twice"),
    ],
)
def test_annotations_without_an_id_of_their_own_are_renumbered_and_kept(tmp_path, own, expected):
    data = load(tmp_path, each("annotations", "id", own))
    assert ids(data) == expected
    [problem] = data.problems
    assert (problem.kind, problem.kept) == ("annotation_ids", True)
    assert data.summary.left_out_objects == 0


def test_annotations_without_the_key_id_are_kept(tmp_path):
    def drop(document):
        for entry in document["annotations"]:
            del entry["id"]

    assert ids(load(tmp_path, drop)) == [1, 2, 3, 4]


def test_ids_that_are_unique_stay():
    own = np.array([-5, 7, 2**60, 0])
    kept, new = unique_ids(own, np.ones(4, dtype=bool))
    assert kept.tolist() == own.tolist()
    assert not new.any()


def test_numbers_as_text_and_as_floats_are_read(tmp_path):
    def spell(document):
        for entry in document["images"]:
            entry.update(id=str(entry["id"]), width="64", height=48.0)
        for entry in document["annotations"]:
            entry.update(image_id=float(entry["image_id"]), category_id="1", id=f"{entry['id']}")
        document["categories"][0]["id"] = 1.0

    data = load(tmp_path, spell)
    assert data.problems == ()
    assert [image.id for image in data.images] == [1, 2]
    assert ids(data) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "value",
    [
        *(True, None, 1.5, float("nan"), float("inf"), 1e30, 2**63, -(2**63) - 1, [1], {}),
        *("", "1.0", "01", " 1", "+1", "1e3", "\u0661", "9" * 19, "9" * 5000, "abc"),
    ],
    ids=repr,
)
def test_what_is_no_integer_of_64_bits_is_none(value):
    assert read_integer(value) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(each("images", "id", "a1"), "id is 'a1'; give an integer", id="text-as-id"),
        pytest.param(each("images", "id", 2**64), "at most 64 bits", id="id-of-65-bits"),
        pytest.param(each("images", "width", "wide"), "width is 'wide'", id="width"),
        pytest.param(each("images", "height", [48]), r"height is \[48\]", id="height"),
        pytest.param(each("images", "file_name", 7), "file_name is 7; give a text", id="name"),
        pytest.param(each("images", "file_name", ""), "unsafe_file_name", id="empty-name"),
        pytest.param(each("annotations", "image_id", [1]), r"image_id is \[1\]", id="image-id"),
        pytest.param(each("categories", "id", "x"), "id is 'x'", id="category-id"),
        pytest.param(each("categories", "name", 3), "name is 3; give a text", id="category-name"),
        pytest.param(lambda d: d.update(images=[None, 3]), "no JSON object", id="no-objects"),
    ],
)
def test_a_value_that_is_unusable_is_named(tmp_path, change, reason):
    with pytest.raises(DataError, match=reason):
        load(tmp_path, change)


@pytest.mark.parametrize(
    ("value", "crowd"),
    [
        *((value, False) for value in (0, "0", False, "false", None, 0.0)),
        *((value, True) for value in (1, "1", True, "true", "True", 1.0)),
    ],
    ids=repr,
)
def test_crowd_flags_are_read_however_they_are_written(value, crowd):
    assert read_flag(value) is crowd


@pytest.mark.parametrize("value", [2, -1, "no", "", [], {}, 0.5, float("nan")], ids=repr)
def test_another_crowd_flag_is_one_named_problem(tmp_path, value):
    def edit(document):
        document["annotations"][0]["iscrowd"] = value

    data = load(tmp_path, edit)
    [problem] = data.problems
    assert (problem.kind, problem.kept) == ("bad_iscrowd", False)
    assert "iscrowd is" in problem.detail
    assert ids(data) == [2, 3, 4]


def test_objects_are_no_crowds_where_the_flag_is_text(tmp_path):
    data = load(tmp_path, each("annotations", "iscrowd", "0"))
    assert data.problems == ()
    assert (data.summary.objects, data.summary.crowds) == (4, 0)


def test_a_split_of_crowds_alone_names_iscrowd(tmp_path):
    with pytest.raises(DataError, match="iscrowd"):
        load(tmp_path, each("annotations", "iscrowd", "1"))


def test_normalised_coordinates_are_named_as_the_cause(tmp_path):
    def divide(document):
        for entry in document["annotations"]:
            entry["segmentation"] = [[value / 64 for value in entry["segmentation"][0]]]

    with pytest.raises(DataError, match=r"no usable object.*divided by the image's size"):
        load(tmp_path, divide)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("x" * 300 + ".png", "missing_image", id="too-long"),
        pytest.param("d/" * 3000 + "x.png", "missing_image", id="path-too-long"),
        pytest.param("0.png/x.png", "missing_image", id="in-a-file"),
        pytest.param("half \ud83d.png", "missing_image", id="half-a-character"),
        pytest.param("no\0name.png", "unsafe_file_name", id="nul"),
        pytest.param("..\\1.png", "unsafe_file_name", id="up"),
        pytest.param("sub\\..\\..\\1.png", "unsafe_file_name", id="down-and-up"),
        pytest.param("\\\\server\\1.png", "unsafe_file_name", id="server"),
        pytest.param("sub\\gone.png", "missing_image", id="backslash"),
        pytest.param(".", "unsafe_file_name", id="folder"),
    ],
)
def test_a_name_that_no_file_has_is_the_problem_of_one_image(tmp_path, name, kind):
    def rename(document):
        document["images"][1]["file_name"] = name

    data = load(tmp_path, rename)
    assert kinds(data) == [kind]
    assert [image.id for image in data.images] == [1]
    describe_problems(data.problems).encode()


def test_backslashes_are_read_as_slashes(tmp_path):
    def rename(document):
        document["images"][0]["file_name"] = "sub\\deep\\0.png"
        document["images"][1]["file_name"] = ".\\1.png"

    folder = make_folder(tmp_path / "data", rename)
    (folder / "images" / "sub" / "deep").mkdir(parents=True)
    (folder / "images" / "0.png").rename(folder / "images" / "sub" / "deep" / "0.png")
    data = load_coco(folder, "train")
    assert data.problems == ()
    assert [image.file_name for image in data.images] == ["sub/deep/0.png", "1.png"]


def test_a_file_name_that_is_no_utf8_is_read(tmp_path):
    data = load(tmp_path, names=("caf\udce9.png", "1.png"))
    assert data.problems == ()
    assert [data.image_path(image).is_file() for image in data.images] == [True, True]
    assert len(tree_sha256(sha256_of_files(data.root))) == 64


def test_a_problem_of_a_file_whose_name_is_no_utf8_can_be_printed(tmp_path):
    folder = make_folder(tmp_path / "data", names=("caf\udce9.png", "1.png"))
    path = folder / "images" / "caf\udce9.png"
    path.write_bytes(path.read_bytes()[:40])
    data = load_coco(folder, "train", check_pixels=True)
    assert kinds(data) == ["undecodable_image"]
    assert "caf\\udce9.png" in describe_problems(data.problems).encode().decode()


JUNK = [
    *(None, True, 0, -1, 1.5, 2**63, 10**400, float("nan"), float("inf"), 1e308),
    *("", "x", "1", "\ud83d", "\udce9", "a\0b", "..\\..", "/etc/passwd", "C:\\x.png", "x" * 300),
    *([], [[]], [[[]]], {}, {"a": 1}, [None], [1, 2, 3, 4], [0] * 4),
    *(
        [[1e9] * 6],
        [[1, 2, 3, 4, 5, 6]],
        [[5, 5, 20, 20, 20, 5, 5, 20]],
        [[0.1, 0.1, 0.9, 0.1, 1, 1]],
    ),
    *({"size": [48, 64], "counts": [3072]}, {"size": [48, 64], "counts": "ab"}, {"size": 1}),
]


@pytest.mark.filterwarnings("error")
def test_whatever_a_value_is_the_rest_is_read_or_refused_in_words(tmp_path):
    folder = make_folder(tmp_path / "data")
    path = folder / "annotations" / "instances_train.json"
    whole = json.loads(path.read_text())
    rng = random.Random(0)
    for _ in range(60):
        document = copy.deepcopy(whole)
        for _ in range(rng.randint(1, 3)):
            entry = rng.choice(document[rng.choice(["images", "annotations", "categories"])])
            entry[rng.choice(list(entry))] = rng.choice(JUNK)
        path.write_text(json.dumps(document))
        try:
            data = load_coco(folder, "train")
        except DataError as error:
            str(error).encode()
        else:
            describe_problems(data.problems).encode()
            own = [annotation for image in data.images for annotation in image.annotations]
            assert all(annotation.crowd or annotation.parts for annotation in own)
            assert len({annotation.id for annotation in own}) == len(own)


def test_half_a_character_in_a_category_name_is_replaced_and_noted(tmp_path):
    data = load(tmp_path, each("categories", "name", "caf\udce9 \ud83d"))
    assert [category.name for category in data.categories] == ["caf\ufffd \ufffd"]
    [problem] = data.problems
    assert (problem.kind, problem.kept) == ("bad_category_name", True)
