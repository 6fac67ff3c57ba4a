"""Annotations of other programs become the COCO folder that they describe."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polarmask.cli import main
from polarmask.data.coco import load_coco
from polarmask.errors import DataError
from polarmask.geometry.masks import bitmap_from_rle, rles_from_labels
from polarmask.importing.coco_export import find_coco_files, load_coco_file, read_coco
from polarmask.importing.detect import read_source
from polarmask.importing.source import SourceImage, split_of
from polarmask.importing.write import choose_split, write_coco

HW = 40, 60
SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]
"""x, y, ... of rows 5 to 24 and columns 10 to 29."""


def two_objects():
    """Two touching objects of 400 and 100 pixels."""
    labels = np.zeros(HW, np.uint16)
    labels[5:25, 10:30] = 7
    labels[25:35, 10:20] = 300
    return labels


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_image(path):
    return save(path, np.full((*HW, 3), 99, np.uint8))


def areas_of(folder, split="train"):
    data = load_coco(folder, split, check_pixels=True)
    return {
        image.file_name: [annotation.area for annotation in image.annotations]
        for image in data.images
    }


def imported(tmp_path, source, **settings):
    write_coco(source, tmp_path / "out", **settings)
    found = [areas_of(tmp_path / "out", split) for split in ("train", "val")]
    return found[0] | found[1]


def test_label_image_to_rle_and_back():
    rng = np.random.default_rng(0)
    for _ in range(50):
        labels = rng.integers(-1, 4, size=(rng.integers(1, 9), rng.integers(1, 9)))
        values = np.unique(labels[labels > 0])
        rles = rles_from_labels(labels)
        assert len(rles) == len(values)
        for value, rle in zip(values, rles, strict=True):
            np.testing.assert_array_equal(bitmap_from_rle(rle), labels == value)


MASK_LAYOUTS = {
    "folder of masks": ("images/{}.tif", "masks/{}.png"),
    "masks beside images": ("{}.png", "{}_masks.tif"),
    "cellpose": ("{}.png", "{}_cp_masks.png"),
    "split folders": ("train/images/{}.png", "train/masks/{}.png"),
}


@pytest.mark.parametrize(("image", "mask"), MASK_LAYOUTS.values(), ids=MASK_LAYOUTS)
def test_label_images(tmp_path, image, mask):
    for name in ("a", "b"):
        save_image(tmp_path / "in" / image.format(name))
        save(tmp_path / "in" / mask.format(name), two_objects())
    source = read_source(tmp_path / "in", category="cell")
    found = imported(tmp_path, source)
    assert list(found.values()) == [[400, 100], [400, 100]]
    assert load_coco(tmp_path / "out", "train").categories[0].name == "cell"
    assert source.problems == []


SAME_NAMES = {
    "folders in each": ("{}/images/1.png", "{}/masks/1.png"),
    "folders below both": ("images/{}/1.png", "masks/{}/1.png"),
    "masks beside images": ("{}/1.png", "{}/1_mask.png"),
}


@pytest.mark.parametrize(("image", "mask"), SAME_NAMES.values(), ids=SAME_NAMES)
def test_images_of_one_name_in_several_folders_have_their_own_masks(tmp_path, image, mask):
    sides = {"a": 5, "b": 6, "c": 7}
    for name, side in sides.items():
        labels = two_objects()
        labels[:side, :side] = 900
        save_image(tmp_path / "in" / image.format(name))
        save(tmp_path / "in" / mask.format(name), labels)
    (tmp_path / "in" / mask.format("c")).unlink()
    source = read_source(tmp_path / "in")
    found = imported(tmp_path, source)
    last = {name: areas[-1] for name, areas in found.items()}
    assert last == {image.format(n).removeprefix("images/"): sides[n] ** 2 for n in "ab"}
    assert [problem.kind for problem in source.problems] == ["no_mask"]


def test_masks_of_another_folder(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "in" / f"{name}.png")
        save(tmp_path / "elsewhere" / f"{name}.tif", two_objects())
    found = imported(tmp_path, read_source(tmp_path / "in", masks=tmp_path / "elsewhere"))
    assert found == {"a.png": [400, 100], "b.png": [400, 100]}


@pytest.mark.parametrize("mask", ["{}/masks/{}.png", "masks/{}/{}.png"])
def test_one_mask_file_per_object(tmp_path, mask):
    for name in ("a", "b"):
        save_image(
            tmp_path
            / "in"
            / (f"{name}/images/{name}.png" if mask[0] == "{" else f"images/{name}.png")
        )
        for value in (7, 300):
            one = np.where(two_objects() == value, 255, 0).astype(np.uint8)
            save(tmp_path / "in" / mask.format(name, value), one)
    found = imported(tmp_path, read_source(tmp_path / "in"))
    assert sorted(map(sorted, found.values())) == [[100, 400], [100, 400]]


def test_masks_of_one_value_are_taken_apart(tmp_path):
    apart = np.zeros(HW, np.uint8)
    apart[2:12, 2:12] = apart[20:25, 20:30] = 255
    for name in ("a", "b"):
        save_image(tmp_path / "in/images" / f"{name}.png")
        save(tmp_path / "in/masks" / f"{name}.png", apart)
    source = read_source(tmp_path / "in")
    assert imported(tmp_path, source)["a.png"] == [100, 50]
    assert "connected region" in source.kind


def test_masks_below_the_images_are_no_images_however_the_folder_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_image(tmp_path / "in" / f"{name}.png")
        save(tmp_path / "in/drawn" / f"{name}.png", two_objects())
    source = read_source(Path("in"), masks=tmp_path / "in/drawn")
    assert [image.path for image in source.images] == [Path("in/a.png"), Path("in/b.png")]


def test_masks_that_jpeg_changed_are_refused(tmp_path):
    for name, end in (("a", "png"), ("b", "jpg")):
        save_image(tmp_path / "in/images" / f"{name}.png")
        binary = np.where(two_objects() == 7, 255, 0).astype(np.uint8)
        save(tmp_path / "in/masks" / f"{name}.{end}", binary)
    source = read_source(tmp_path / "in")
    assert [image.path.name for image in source.images] == ["a.png"]
    assert "save masks as PNG" in source.problems[0].detail


def test_mask_that_does_not_fit_leaves_its_image_out(tmp_path):
    for name in ("a", "b", "c", "d"):
        save_image(tmp_path / "in/images" / f"{name}.png")
        save(tmp_path / "in/masks" / f"{name}.png", two_objects())
    save(tmp_path / "in/masks/b.png", two_objects()[:30])
    (tmp_path / "in/masks/d.png").unlink()
    source = read_source(tmp_path / "in")
    assert set(imported(tmp_path, source)) == {"a.png", "c.png"}
    assert {problem.kind for problem in source.problems} == {"no_mask", "unusable_mask"}
    assert any("is 60x30, its image 60x40" in problem.detail for problem in source.problems)


def test_yolo(tmp_path):
    folder = tmp_path / "in"
    fractions = [value / HW[1 - index % 2] for index, value in enumerate(SQUARE)]
    for split, name in (("train", "a"), ("train", "empty"), ("valid", "b")):
        save_image(folder / split / "images" / f"{name}.png")
        lines = (
            "" if name == "empty" else "1 " + " ".join(map(str, fractions)) + "\n0 .5 .5 .1 .1\n"
        )
        (folder / split / "labels").mkdir(exist_ok=True)
        (folder / split / "labels" / f"{name}.txt").write_text(lines)
    (folder / "data.yaml").write_text("names: [box, nucleus]\n")
    source = read_source(folder)
    write_coco(source, tmp_path / "out")
    assert areas_of(tmp_path / "out") == {
        "train/images/a.png": [pytest.approx(400)],
        "train/images/empty.png": [],
    }
    assert list(areas_of(tmp_path / "out", "val")) == ["valid/images/b.png"]
    assert load_coco(tmp_path / "out", "val").categories[0].name == "nucleus"
    assert [problem.kind for problem in source.problems] == ["box_only", "box_only"]


def labelme_shapes():
    points = np.reshape(SQUARE, (-1, 2)).tolist()
    crop = io.BytesIO()
    Image.fromarray(np.full((4, 5), 255, np.uint8)).save(crop, "PNG")
    return [
        {"label": "cell", "points": points, "shape_type": "polygon"},
        {"label": "cell", "points": [[0, 0], [4, 5]], "shape_type": "rectangle", "group_id": 1},
        {"label": "cell", "points": [[50, 30], [60, 40]], "shape_type": "rectangle", "group_id": 1},
        {"label": "ring", "points": [[30, 20], [40, 20]], "shape_type": "circle"},
        {"label": "cell", "points": [[1, 1]], "shape_type": "point"},
        {
            "label": "cell",
            "points": [[50, 2], [54, 5]],
            "shape_type": "mask",
            "mask": base64.b64encode(crop.getvalue()).decode(),
        },
    ]


def test_labelme(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "in" / f"{name}.png")
        document = {"shapes": labelme_shapes(), "imagePath": f"..\\in\\{name}.png"}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(document))
    source = read_source(tmp_path / "in")
    found = imported(tmp_path, source)
    assert found["a.png"] == [400, 120, pytest.approx(np.pi * 100, rel=0.01), 20]
    assert [problem.kind for problem in source.problems] == ["no_area", "no_area"]


def labelme_folder(folder, *shapes):
    """Write image and JSON `a` with these shapes, and `b` with a square."""
    square = {"label": "cell", "points": np.reshape(SQUARE, (-1, 2)).tolist()}
    for name, own in (("a", shapes), ("b", [square])):
        save_image(folder / f"{name}.png")
        document = {"shapes": own, "imagePath": "missing.png"}
        # Editors of Windows put a mark before the text.
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8-sig")


def test_labelme_mask_and_polygon_of_one_group_are_one_object(tmp_path):
    *_, mask = labelme_shapes()
    square = {"label": "cell", "points": np.reshape(SQUARE, (-1, 2)).tolist(), "group_id": 1}
    labelme_folder(tmp_path / "in", {**mask, "group_id": 1}, square)
    [image, _] = read_source(tmp_path / "in").images
    assert [bitmap_from_rle(one.segmentation).sum() for one in image.objects] == [420]


def test_labelme_rectangle_of_one_point_leaves_its_image_out(tmp_path):
    labelme_folder(
        tmp_path / "in", {"label": "cell", "points": [[1, 1]], "shape_type": "rectangle"}
    )
    source = read_source(tmp_path / "in")
    assert [image.path.name for image in source.images] == ["b.png"]
    assert [problem.kind for problem in source.problems] == ["unusable_file"]


def test_labelme_file_takes_the_image_beside_it(tmp_path):
    labelme_folder(tmp_path / "in")
    save_image(tmp_path / "in/other/b.png")
    found = [image.path for image in read_source(tmp_path / "in").images]
    assert found == [tmp_path / "in/a.png", tmp_path / "in/b.png"]


@pytest.mark.parametrize("line", [b"nan .1 .1 .5 .1 .5 .5", b"0 .1 .1 .5 .1 .5 \xe9"])
def test_yolo_line_that_holds_no_numbers_is_left_out(tmp_path, line):
    save_image(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_bytes(line + b"\n0 .1 .1 .5 .1 .5 .5\n")
    source = read_source(tmp_path)
    assert [len(image.objects) for image in source.images] == [1]
    assert [problem.kind for problem in source.problems] == ["bad_coordinates"]


def test_yolo_names_need_numbers(tmp_path):
    (tmp_path / "data.yaml").write_text("names: {cell: 0}")
    with pytest.raises(DataError, match="NUMBER: NAME"):
        read_source(tmp_path, kind="yolo")


def test_coco_file_with_a_mark_is_read_and_a_damaged_one_is_logged(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    text = json.dumps(coco_document(["a.png"]))
    (tmp_path / "train.json").write_text(text, encoding="utf-8-sig")
    (tmp_path / "val.json").write_text(text[:-9])
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints/train-checkpoint.json").write_text(text)
    assert [file.path.name for file in find_coco_files(tmp_path)] == ["train.json"]
    assert "val.json is no COCO instances JSON" in caplog.text


def coco_document(names, folder=""):
    return {
        "images": [
            {"id": n, "file_name": folder + name, "width": HW[1], "height": HW[0]}
            for n, name in enumerate(names)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 18, "segmentation": [SQUARE]}
            for n in range(len(names))
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    }


COCO_LAYOUTS = {
    "published": ("annotations/instances_{}2017.json", "{}2017/{}.png", ""),
    "roboflow": ("{}/_annotations.coco.json", "{}/{}.png", ""),
    "label studio": ("{}/result.json", "{}/images/{}.png", "../../upload/1/"),
    "fiftyone": ("{}/labels.json", "{}/data/{}.png", ""),
}


@pytest.mark.parametrize(("file", "image", "prefix"), COCO_LAYOUTS.values(), ids=COCO_LAYOUTS)
def test_coco_exports(tmp_path, file, image, prefix):
    for split, name in (("train", "a"), ("val", "b")):
        save_image(tmp_path / "in" / image.format(split, name))
        path = tmp_path / "in" / file.format(split)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(coco_document([f"{name}.png"], prefix)))
    source = read_source(tmp_path / "in")
    write_coco(source, tmp_path / "out")
    for split, name in (("train", "a"), ("val", "b")):
        data = load_coco(tmp_path / "out", split)
        assert [record.file_name for record in data.images] == [image.format(split, name)]
        # Published models know COCO's categories by these ids.
        assert [(each.id, each.name) for each in data.categories] == [(1, "person"), (18, "dog")]


def test_coco_values_are_read_however_they_are_written(tmp_path):
    save_image(tmp_path / "a.png")
    document = coco_document(["a.png"])
    document["images"][0].update(id="0", width="60", height=40.0)
    document["categories"][0]["id"] = 18.0
    [first] = document["annotations"]
    others = [{"iscrowd": "false"}, {"iscrowd": "True"}, {"iscrowd": "?"}, {"image_id": [0]}]
    document["annotations"] += [{**first, **other} for other in others]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    source = read_coco([load_coco_file(path, tmp_path, None)])
    [image] = source.images
    assert (image.width, image.height) == (60, 40)
    assert [one.crowd for one in image.objects] == [False, False, True]
    assert [problem.kind for problem in source.problems] == ["bad_iscrowd", "unknown_image"]
    assert source.category_ids == {"dog": 18, "person": 1}


def test_coco_keypoints_and_captions_are_no_outlines(tmp_path):
    save_image(tmp_path / "a.png")
    document = coco_document(["a.png"])
    (tmp_path / "instances.json").write_text(json.dumps(document))
    document["categories"][0]["keypoints"] = ["nose"]
    (tmp_path / "person_keypoints.json").write_text(json.dumps(document))
    captions = {**document, "annotations": [{"id": 1, "image_id": 0, "caption": "a dog"}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    assert [file.path.name for file in find_coco_files(tmp_path)] == ["instances.json"]


def test_image_name_that_two_files_have_is_left_out(tmp_path):
    save_image(tmp_path / "in/x/a.png")
    save_image(tmp_path / "in/y/a.png")
    save_image(tmp_path / "in/y/b.png")
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco_document(["a.png", "b.png", "y/a.png"])))
    source = read_coco([load_coco_file(path, tmp_path / "in", None)])
    assert [image.path.name for image in source.images] == ["b.png", "a.png"]
    assert "2 files are called a.png" in source.problems[0].detail


def test_folders_that_only_contain_the_letters_of_a_split_are_none(tmp_path):
    folders = {
        "train2017": "train",
        "instances_minitrain": "train",
        "TrainingImages": "train",
        "valid": "val",
        "cocoVal2017": "val",
        "stage1_test": "val",
        "minival2014": "val",
        "oval_cells": None,
        "interval": None,
        "latest": None,
        "strains": None,
    }
    assert {name: split_of(name) for name in folders} == folders
    # Where the folder itself lies says nothing.
    save_image(tmp_path / "val/in/train/images/a.png")
    save_image(tmp_path / "val/in/more/images/b.png")
    for place in ("train/masks/a.png", "more/masks/b.png"):
        save(tmp_path / "val/in" / place, two_objects())
    splits = [image.split for image in read_source(tmp_path / "val/in").images]
    assert splits == [None, "train"]


def test_split_keeps_images_of_one_group_together(tmp_path):
    for slide in "abcdefgh":
        for tile in range(4):
            save_image(tmp_path / "in/images" / f"slide_{slide}_{tile}.png")
            save(tmp_path / "in/masks" / f"slide_{slide}_{tile}.png", two_objects())
    images = list(read_source(tmp_path / "in").images)
    choice = choose_split(images, 0.25)
    assert len(choice.val) == 8
    assert len({path.stem[:7] for path in choice.val}) == 2
    assert "whole groups" in choice.reason
    assert choose_split(images, 0.25) == choice


def test_most_images_stay_in_their_split_when_others_are_added():
    first = [SourceImage(Path(f"a/{n}.png"), 1, 1, ()) for n in range(60)]
    more = [SourceImage(Path(f"b/{n}_more.png"), 1, 1, ()) for n in range(120)]
    before, after = choose_split(first, 0.2).val, choose_split([*first, *more], 0.2).val
    assert len(before) == 12
    assert len(after) == 36
    moved = before ^ {path for path in after if path.parent.name == "a"}
    assert len(moved) <= 6  # 12 to 20 if the new images changed who is drawn


def test_a_large_group_is_no_small_split(tmp_path):
    names = [f"a_{n}" for n in range(60)] + ["b_1", "c_1", "d_1", "e_1", "f_1"]
    images = [SourceImage(tmp_path / f"{name}.png", 1, 1, ()) for name in names]
    assert 1 <= len(choose_split(images, 0.2).val) <= 13


def test_image_of_two_annotation_files_is_taken_once(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "in" / f"{name}.png")
    for name in ("one", "two"):
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(coco_document(["a.png", "b.png"])))
    source = read_source(tmp_path / "in")
    assert imported(tmp_path, source) == {"a.png": [400], "b.png": [400]}
    assert [problem.kind for problem in source.problems] == ["duplicate_image"] * 2


def test_images_are_linked_or_copied(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "in/images" / f"{name}.png")
        save(tmp_path / "in/masks" / f"{name}.png", two_objects())
    write_coco(read_source(tmp_path / "in"), tmp_path / "linked")
    write_coco(read_source(tmp_path / "in"), tmp_path / "copied", copy=True)
    assert (tmp_path / "linked/images/a.png").is_symlink()
    assert not (tmp_path / "copied/images/a.png").is_symlink()
    assert areas_of(tmp_path / "linked") == areas_of(tmp_path / "copied")


def test_nothing_is_written_without_an_object(tmp_path):
    save_image(tmp_path / "in/images/a.png")
    save(tmp_path / "in/masks/a.png", np.zeros(HW, np.uint8))
    with pytest.raises(DataError, match="no image with an object"):
        write_coco(read_source(tmp_path / "in"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_written_if_a_split_has_no_object(tmp_path):
    for split, objects in (("train", two_objects()), ("val", np.zeros(HW, np.uint8))):
        save_image(tmp_path / f"in/images/{split}/{split}_1.png")
        save(tmp_path / f"in/masks/{split}/{split}_1.png", objects)
    with pytest.raises(DataError, match=r"no image of the val split has an object .*--val"):
        write_coco(read_source(tmp_path / "in"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_command_prints_counts_problems_and_the_next_command(tmp_path, capsys):
    for name in ("a", "b", "c"):
        save_image(tmp_path / "in/images" / f"{name}.png")
        save(tmp_path / "in/masks" / f"{name}.png", two_objects())
    (tmp_path / "in/masks/c.png").write_bytes(b"no image")
    assert (
        main(["import", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--val", ".5"]) == 0
    )
    printed = capsys.readouterr().out
    assert "train: 1 images, 2 objects" in printed
    assert "val: 1 images, 2 objects" in printed
    assert "unusable_mask: 1 image left out" in printed
    assert f"next: polarmask train --data {tmp_path / 'out'}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FOLDER", "--val", "2"], "above 0 and below 1"),
        (["FOLDER", "--train", "a.json", "b"], "give a folder, or --train"),
        ([], "give a folder, or --train"),
        (["missing"], "is no folder"),
        (["FOLDER", "--format", "coco"], "no JSON file holds COCO"),
        (["FOLDER"], "no image has a mask"),
    ],
)
def test_wrong_arguments(tmp_path, capsys, arguments, message):
    save_image(tmp_path / "in/a.png")
    named = [str(tmp_path / "in") if each == "FOLDER" else each for each in arguments]
    assert main(["import", *named, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
