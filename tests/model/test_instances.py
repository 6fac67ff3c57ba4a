"""Instances as files: what each format holds is what the masks say."""

import csv
import io
import json
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from roifile import ImagejRoi

from polarmask.errors import ConfigError, DataError
from polarmask.geometry.masks import (
    bitmap_from_rle,
    crop_from_rle,
    labels_from_rles,
    rles_from_labels,
)
from polarmask.inference.instances import Instances

HW = 50, 80


def square(x, y, side):
    return [[x + side, y], [x + side, y + side], [x, y + side], [x, y]]


@pytest.fixture
def found():
    """A square of 20 pixels, one of 10 that lies half on it, and one of two parts."""
    polygons = np.array([square(10, 5, 20), square(25, 10, 10), square(60, 5, 8)], np.float32)
    return Instances(
        image_hw=HW,
        polygons=polygons,
        boxes_xywh=np.array([[10, 5, 20, 20], [25, 10, 10, 10], [60, 5, 16, 8]], np.float32),
        scores=np.array([0.9, 0.8, 0.7], np.float32),
        category_ids=np.array([1, 1, 3]),
        category_names=("cell", "cell", "a/b"),
        centers=polygons.mean(axis=1),
        ray_lengths=np.ones((3, 4), np.float32),
        further_parts={2: np.array([square(70, 5, 6)], np.float32)},
    )


def read_label_image(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_label_image_numbers_instances_and_the_best_wins(tmp_path, found, suffix):
    found.save(tmp_path / f"a{suffix}")
    labels = read_label_image(tmp_path / f"a{suffix}")
    masks = [bitmap_from_rle(rle) for rle in found.rle()]
    expected = np.select([masks[0], masks[1], masks[2]], [1, 2, 3])
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.uint16


def test_label_image_and_rles_are_inverse():
    rng = np.random.default_rng(1)
    for _ in range(30):
        hw = tuple(rng.integers(1, 9, size=2))
        labels = rng.integers(0, 4, size=hw)
        _, dense = np.unique(np.append(labels, 0), return_inverse=True)
        np.testing.assert_array_equal(
            labels_from_rles(rles_from_labels(labels), hw), dense[:-1].reshape(hw)
        )
        for rle in rles_from_labels(labels):
            crop, (x, y) = crop_from_rle(rle)
            whole = bitmap_from_rle(rle)
            assert crop.sum() == whole.sum()
            np.testing.assert_array_equal(whole[y : y + crop.shape[0], x : x + crop.shape[1]], crop)


def test_measures_of_a_square_and_of_two_parts(found):
    first, _, third = found.measure()
    assert (first.area, first.x, first.y) == (400, 20, 15)
    assert first.diameter == pytest.approx(22.57, abs=0.01)
    # A square's second moment is side^2 / 12, an ellipse's axis^2 / 16.
    assert first.major_axis == first.minor_axis == pytest.approx(20 * np.sqrt(16 / 12), abs=0.01)
    assert third.area == 64 + 36
    assert third.x == pytest.approx((64 * 64 + 36 * 73) / 100)
    assert third.major_axis > 1.5 * third.minor_axis


def test_table(tmp_path, found):
    found.save(tmp_path / "a.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["object"] for row in rows] == ["1", "2", "3"]
    assert [row["category"] for row in rows] == ["cell", "cell", "a/b"]
    assert rows[0]["area"] == "400"
    assert rows[0]["score"] == "0.9"


def test_geojson_closes_its_rings(tmp_path, found):
    found.save(tmp_path / "a.geojson")
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    kinds = [each["geometry"]["type"] for each in features]
    assert kinds == ["Polygon", "Polygon", "MultiPolygon"]
    ring = features[0]["geometry"]["coordinates"][0]
    assert ring == [[30, 5], [30, 25], [10, 25], [10, 5], [30, 5]]
    assert features[2]["properties"]["classification"] == {"name": "a/b"}


def test_coco_results(tmp_path, found):
    found.save(tmp_path / "a.json")
    results = json.loads((tmp_path / "a.json").read_text())
    assert [each["category_id"] for each in results] == [1, 1, 3]
    assert [bitmap_from_rle(each["segmentation"]).sum() for each in results] == [400, 100, 100]
    assert results[0]["bbox"] == [10, 5, 20, 20]


def test_imagej_rois(tmp_path, found):
    found.save(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        rois = [ImagejRoi.frombytes(archive.read(name)) for name in archive.namelist()]
    assert [roi.name for roi in rois] == ["00001-cell", "00002-cell", "00003-a/b", "00003-1-a/b"]
    np.testing.assert_allclose(rois[0].coordinates(), found.polygons[0])


def test_supervision_is_asked_for_where_it_is_missing(found, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match=r"needs the package .*pip install supervision$"):
        found.to_supervision()


def test_unknown_suffix_is_refused_and_nothing_written(tmp_path, found):
    with pytest.raises(DataError, match=r"choose one of \.png"):
        found.save(tmp_path / "a.xlsx")
    assert list(tmp_path.iterdir()) == []


def test_nothing_found_is_written_too(tmp_path, found):
    nothing = found.select([])
    for suffix in (".png", ".tif", ".csv", ".geojson", ".json", ".zip"):
        nothing.save(tmp_path / f"a{suffix}")
    assert not read_label_image(tmp_path / "a.png").any()


def test_instances_are_chosen_by_mask_slice_and_rows(found):
    assert found[found.scores > 0.75].scores.tolist() == pytest.approx([0.9, 0.8])
    assert found[1:].category_names == ("cell", "a/b")
    assert list(found[[2]].further_parts) == [0]
    np.testing.assert_array_equal(found[:1].boxes, [[10, 5, 30, 25]])
    assert found.masks().sum(axis=(1, 2)).tolist() == [400, 100, 100]


def test_one_instance_is_chosen_by_its_row_and_a_loop_goes_over_all(found):
    assert found[-1].scores.tolist() == found.scores[-1:].tolist()
    assert [len(each) for each in found] == [1, 1, 1]
    assert [float(each.scores[0]) for each in found] == found.scores.tolist()
    with pytest.raises(IndexError):
        found[3]


def test_instances_show_themselves_in_a_line_and_in_a_notebook(found):
    assert repr(found) == "Instances(2 cell, 1 a/b in 80x50 pixels, scores 0.70 to 0.90)"
    assert repr(found.select([])) == "Instances(nothing in 80x50 pixels)"
    with pytest.raises(DataError, match="not kept"):
        found.plot()
    kept = replace(found, image=np.zeros((*HW, 3), np.uint8))
    assert kept.plot().any()
    assert '<img src="data:image/jpeg;base64,' in kept._repr_html_()
