"""`polarmask predict --save`: files for other programs, all of them about the same instances."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from factories import make_instances
from polarmask.errors import DataError
from polarmask.inference.saved_files import KINDS, save_images

SQUARE = [[30, 10], [30, 30], [10, 30], [10, 10]]
SMALL = [[50, 5], [50, 15], [40, 15], [40, 5]]


class TwoSquares:
    """Finds the same two squares in every image."""

    def find(self, image, min_score=None):
        found = make_instances(image.shape[:2], [(SQUARE, 0.9, 1), (SMALL, 0.4, 2)])
        warnings = {} if min_score else {"results_cut": "more than 2 instances"}
        return replace(found[found.scores >= (min_score or 0)], warnings=warnings)


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "in" / name for name in ("a.png", "b.png", "more/a.png")]
    return [black(path) for path in paths]


def black(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path, "PNG")
    return path


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_kind_is_written_for_every_image(images, tmp_path):
    out = tmp_path / "out"
    looked = save_images(TwoSquares(), images, out, KINDS, min_score=0.5)
    assert list(looked.counts.values()) == [1, 1, 1]
    assert not looked.warnings
    names = {path.name for path in out.iterdir()}
    stems = ("a_0001", "b", "a_0003")
    endings = ("_labels.tif", "_overlay.jpg", ".geojson", "_rois.zip")
    own = {stem + ending for stem in stems for ending in endings}
    assert names == own | {"objects.csv", "counts.csv", "coco_results.json"}
    with Image.open(out / "b_labels.tif") as labels:
        assert (np.asarray(labels) == 1).sum() == 400
    assert [row["area"] for row in rows_of(out / "objects.csv")] == ["400"] * 3
    assert [row["all"] for row in rows_of(out / "counts.csv")] == ["1", "1", "1"]
    results = json.loads((out / "coco_results.json").read_text())
    assert [(each["image_id"], each["file_name"]) for each in results] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "a.png"),
    ]


def test_bad_image_is_listed_and_the_others_are_counted(images, tmp_path):
    images[1].write_bytes(b"no image")
    looked = save_images(TwoSquares(), images, tmp_path / "out", ["csv"], min_score=0)
    assert list(looked.failed) == [str(images[1])]
    counts = rows_of(tmp_path / "out/counts.csv")
    assert [row["image"] for row in counts] == [str(images[0]), str(images[2])]
    assert [row["all"] for row in counts] == ["2", "2"]
    assert len(rows_of(tmp_path / "out/objects.csv")) == 4


def test_tables_hold_what_was_done_before_an_interruption(images, tmp_path):
    class Interrupted(TwoSquares):
        done = 0

        def find(self, image, min_score=None):
            self.done += 1
            if self.done == 3:
                raise KeyboardInterrupt
            return super().find(image, min_score)

    with pytest.raises(KeyboardInterrupt, match="2 of 3 images are done"):
        save_images(Interrupted(), images, tmp_path / "out", ["csv"])
    assert len(rows_of(tmp_path / "out/counts.csv")) == 2


def test_unknown_kind_and_folder_of_the_images_are_refused(images, tmp_path):
    with pytest.raises(DataError, match="nothing is called 'xlsx'; choose from labels"):
        save_images(TwoSquares(), images, tmp_path / "out", ["xlsx"])
    with pytest.raises(DataError, match="is the folder of the images"):
        save_images(TwoSquares(), images, tmp_path / "in", ["csv"])


def test_an_image_called_as_another_ones_numbered_file_keeps_its_file(images, tmp_path):
    images.append(black(tmp_path / "in" / "a_0001.png"))
    looked = save_images(TwoSquares(), images, tmp_path / "out", ["labels"])
    assert list(looked.warnings) == list(map(str, images))
    stems = {path.name.removesuffix("_labels.tif") for path in (tmp_path / "out").iterdir()}
    assert stems == {"a_0001_", "b", "a_0003", "a_0001"}


def test_a_file_name_that_is_no_utf8_is_escaped_in_tables(tmp_path):
    image = black(tmp_path / "in" / "caf\udce9.png")
    save_images(TwoSquares(), [image], tmp_path / "out", KINDS)
    for table in ("objects.csv", "counts.csv"):
        assert rows_of(tmp_path / "out" / table)[0]["image"].endswith(r"caf\udce9.png")


def test_image_with_the_longest_name_gets_its_files(tmp_path):
    names = ["x" * 250 + end for end in (".png", ".bmp")]
    for name in names:
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    looked = save_images(TwoSquares(), paths, tmp_path / "out", ["labels", "overlay"])
    assert len(looked.counts) == 2
    assert len(list((tmp_path / "out").iterdir())) == 4
