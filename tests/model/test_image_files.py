"""Predictions and overlays of many image files, of which some can't be read."""

import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from factories import make_instances, star
from polarmask.cli import main
from polarmask.data.find_images import find_images
from polarmask.errors import DataError, ServerError
from polarmask.inference.image_files import predict_images, visualize_images
from polarmask.system.files import GrowingJson

PICTURE = Image.fromarray(np.full((40, 40, 3), 128, np.uint8))


class StarFinder:
    """Finds one star in every image; does something else first, by the number of the image."""

    def __init__(self, first=lambda number: None):
        self.first, self.number = first, 0

    def find(self, image, min_score=None):
        self.first(self.number)
        self.number += 1
        found = make_instances(image.shape[:2], [(9 * star() + 20, 0.9, 1)])
        return replace(found, min_score=min_score or 0.4)


@pytest.fixture
def folder(tmp_path):
    """Three images, the second of them truncated."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        PICTURE.save(tmp_path / "images" / f"{name}.png")
    damaged = tmp_path / "images" / "b.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return tmp_path / "images"


def images_in(out):
    return [Path(entry["image"]).name for entry in json.loads(out.read_text())]


def test_every_format_that_pillow_decodes_is_an_image(tmp_path):
    kinds = {"JPEG", "jfif", "gif", "avif", "jp2", "ppm", "tga", "tif", "webp", "bmp", "qoi", "pcx"}
    for kind in kinds:
        PICTURE.save(tmp_path / f"a.{kind}")
    assert {path.suffix for path in find_images([tmp_path])} == {f".{kind}" for kind in kinds}


def test_files_of_a_folder_that_are_left_out_are_noted(tmp_path, caplog):
    for name in ("a.png", "._a.png", "__MACOSX/._a.png", ".cache/b.png", "notes.txt", "c.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PICTURE.save(tmp_path / name, "PNG")
    (tmp_path / "folder.png").mkdir()
    assert find_images([tmp_path, tmp_path / "a.png"]) == [tmp_path / "a.png"]
    assert f"below {tmp_path} 3 hidden files (.NAME, __MACOSX) are left out" in caplog.text
    assert "2 files that are no images by their suffix (1 .h5, 1 .txt)" in caplog.text


def test_linked_folders_are_looked_through_once(tmp_path):
    (tmp_path / "far").mkdir()
    PICTURE.save(tmp_path / "far" / "a.png")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "loop").symlink_to(tmp_path / "near")
    assert find_images([tmp_path / "near"]) == [tmp_path / "near" / "link" / "a.png"]


def test_a_bad_file_does_not_stop_the_others(folder, tmp_path):
    out = tmp_path / "found.json"
    looked = predict_images(StarFinder(), find_images([folder]), out)
    first, failed, last = json.loads(out.read_text())
    assert (len(first["instances"]), len(last["instances"])) == (1, 1)
    assert failed["image"] == str(folder / "b.png")
    assert "is no readable image" in failed["error"]
    assert looked.failed == {failed["image"]: failed["error"]}
    assert len(looked.counts) == 2
    assert looked.min_score == 0.4


def test_an_image_over_the_limit_fails_alone(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    PICTURE.resize((100, 100)).save(tmp_path / "b.png")
    images = find_images([tmp_path])
    looked = predict_images(StarFinder(), images, tmp_path / "found.json", max_pixels=9_999)
    assert list(looked.counts) == [str(tmp_path / "a.png")]
    assert "--max-pixels 10000" in looked.failed[str(tmp_path / "b.png")]


def test_further_pages_are_named_as_unused(tmp_path, caplog):
    PICTURE.save(tmp_path / "stack.tif", save_all=True, append_images=[PICTURE])
    predict_images(StarFinder(), find_images([tmp_path]), tmp_path / "found.json")
    assert "stack.tif has several pages or frames; only the first was used" in caplog.text


def test_overlays_of_the_other_files_are_drawn(folder, tmp_path):
    looked = visualize_images(StarFinder(), find_images([folder]), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0000_a.jpg", "0001_c.jpg", "contact_sheet.jpg"]
    assert list(looked.failed) == [str(folder / "b.png")]


@pytest.mark.parametrize(("command", "out"), [("predict", "found.json"), ("visualize", "overlays")])
def test_commands_list_what_failed_at_the_end_and_exit_with_1(
    folder, tmp_path, monkeypatch, capsys, command, out
):
    monkeypatch.setattr(
        "polarmask.model_sources.open_model.open_model", lambda *_, **__: StarFinder()
    )
    assert main([command, "--model=m", "--out", str(tmp_path / out), str(folder)]) == 1
    title, line = capsys.readouterr().err.splitlines()
    assert title == "1 of 3 images failed:"
    assert line.startswith(f"  {folder / 'b.png'} is no readable image")


def test_what_is_found_is_in_the_file_before_the_next_image(folder, tmp_path):
    out, seen = tmp_path / "found.json", []
    out.write_text("of an earlier run")
    finder = StarFinder(lambda number: seen.append(images_in(out) if number else out.read_text()))
    predict_images(finder, find_images([folder]), out)
    assert seen == ["of an earlier run", ["a.png", "b.png"]]


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        (KeyboardInterrupt(), "^2 of 3 images are done, see .*found.json$"),
        (ServerError("not reached"), "^not reached; 2 of 3 images are done, see .*found.json$"),
    ],
)
def test_what_stops_all_leaves_what_was_found(folder, tmp_path, stop, message):
    def fail(number):
        if number:
            raise stop

    out = tmp_path / "found.json"
    with pytest.raises(type(stop), match=message):
        predict_images(StarFinder(fail), find_images([folder]), out)
    assert images_in(out) == ["a.png", "b.png"]


def test_a_full_disk_leaves_the_entries_before(tmp_path):
    path = tmp_path / "list.json"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with GrowingJson(path) as entries:
        entries.append("first")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(OSError, match="No space left"):
                entries.append("x" * 200)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads(path.read_text()) == ["first"]


def test_output_never_takes_the_place_of_an_input(folder):
    images = find_images([folder])
    with pytest.raises(DataError, match="is one of the images"):
        predict_images(StarFinder(), images, images[0])
    with pytest.raises(DataError, match="is the folder of the images"):
        visualize_images(StarFinder(), images, folder)


@pytest.mark.parametrize(
    ("command", "out", "name"),
    [
        ("predict", "found.json", b"\xff.png"),
        ("predict", "found.json", b"n" * 250 + b".png"),
        ("visualize", "overlays", b"n" * 250 + b".png"),
    ],
    ids=["no-text", "long", "long-overlay"],
)
def test_names_that_are_long_or_no_text_are_no_problem(
    tmp_path, monkeypatch, capsys, command, out, name
):
    monkeypatch.setattr(
        "polarmask.model_sources.open_model.open_model", lambda *_, **__: StarFinder()
    )
    (tmp_path / "images").mkdir()
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "images" / os.fsdecode(name))
    arguments = [command, "--model=m", "--out", str(tmp_path / out), str(tmp_path / "images")]
    assert main(arguments) == 0
    assert ".png: 1 instances" in capsys.readouterr().out
