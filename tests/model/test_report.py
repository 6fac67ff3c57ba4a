import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from factories import ellipse, make_instances, make_tiny_coco, perfect_predictions
from polarmask.config.presets import tiny
from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.data.summary import Problem
from polarmask.evaluation.evaluate import evaluate_predictions
from polarmask.evaluation.inspect_data import spread
from polarmask.labels.precompute import precompute
from polarmask.report.charts import bar_chart, line_chart, scatter_chart
from polarmask.report.data import data_page
from polarmask.report.evaluation import evaluation_page
from polarmask.report.labels import labels_page
from polarmask.report.page import make_figures

PROVENANCE = {"data_commit": "0a1b2c", "code_version": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_coco(tmp_path_factory.mktemp("drawn"), images=6, val_images=4)


@pytest.fixture(scope="module")
def splits(folder):
    return {split: load_coco(folder, split) for split in ("train", "val")}


class Reader(HTMLParser):
    """Collect text, tags and addresses of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += f" {data}"


def assert_self_contained(page):
    reader = Reader(page)
    assert page.startswith("<!doctype html>")
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    assert "url(" not in page
    assert "@import" not in page
    assert len(page) < 2_000_000
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    return reader


def test_the_data_page_counts_draws_and_names_problems(splits):
    problems = (
        Problem(
            "image", "missing_image", "image 3 (<b>bold</b>.png)", "no such file under images/"
        ),
        *(Problem("object", "zero_area", f"annotation {number}", "flat") for number in range(5)),
    )
    page = data_page(
        {**splits, "val": replace(splits["val"], summary=splits["val"].summary.plus(problems))},
        provenance=PROVENANCE,
    )
    reader = assert_self_contained(page)
    assert reader.tags.count("img") == 4 + 6
    assert reader.tags.count("svg") == 2
    assert "<b>bold" not in page
    assert "image 3 (<b>bold</b>.png)" in reader.text
    for word in (
        "missing_image: 1 image left out",
        "zero_area: 5",
        "crescent",
        "128 x 96",
        "data commit",
        "0a1b2c",
    ):
        assert word in reader.text
    assert "code version" not in reader.text
    assert "in more than one split" not in reader.text


def test_the_data_page_warns_of_files_shared_by_splits(splits):
    shared = {"train": splits["train"], "val": replace(splits["train"], split="val")}
    text = Reader(data_page(shared, provenance={})).text
    assert "6 files are in more than one split" in text


def test_the_labels_page_draws_the_worst_objects_with_their_rays(folder, splits, tmp_path):
    config = tiny()
    store = precompute(folder, tmp_path / "labels", config)
    page = labels_page(store, splits, config=config, provenance=PROVENANCE)
    reader = assert_self_contained(page)
    summary = store.summary("val")
    assert f"{summary.mean_iou:.3f}" in reader.text
    assert f"annotation {summary.worst[0][1]} of {summary.worst[0][0]}" in reader.text
    assert reader.tags.count("img") == min(6, len(summary.worst)) + 6
    for word in ("ellipse", "star", "crescent", "without a positive", "36 rays"):
        assert word in reader.text


def test_the_evaluation_page_shows_numbers_curves_and_the_worst_images_first(splits):
    data = splits["val"]
    predictions = perfect_predictions(data)
    spoiled = data.images[2]
    predictions[spoiled.id] = make_instances(
        (spoiled.height, spoiled.width),
        [(8 * ellipse() + 15, 0.95, 2), (6 * ellipse() + 60, 0.9, 5)],
    )
    result = evaluate_predictions(data, predictions)
    page = evaluation_page(result, data, predictions, provenance=PROVENANCE)
    reader = assert_self_contained(page)
    assert f"{result.mask_ap:.3f}" in reader.text
    assert reader.tags.count("img") == 2 * 4
    assert reader.tags.count("svg") == 5
    assert reader.text.index(spoiled.file_name, reader.text.index("Worst")) < reader.text.index(
        data.images[0].file_name, reader.text.index("Worst")
    )
    for category in result.per_category:
        assert category.name in reader.text


def test_the_evaluation_page_of_a_model_that_finds_nothing_is_whole(splits):
    result = evaluate_predictions(splits["val"], {})
    reader = assert_self_contained(evaluation_page(result, splits["val"], {}, provenance={}))
    assert "0.000" in reader.text


def test_detections_are_coloured_by_verdict(splits):
    data = splits["val"]
    image, first = next(
        (image, annotation)
        for image in data.images
        for annotation in image.annotations
        if data.categories[annotation.category].name == "ellipse"
    )
    corner = np.array([image.width - 8, image.height - 8])
    hit = (first.parts[0], 0.9, 2)
    false = (5 * ellipse() + corner, 0.9, 2)
    data = replace(data, images=(replace(image, annotations=(first,)),))
    predictions = {image.id: make_instances((image.height, image.width), [hit, false])}
    evaluation = evaluate_predictions(data, predictions)
    page = evaluation_page(evaluation, data, predictions, provenance={})
    [_, encoded] = re.findall(r"base64,([^\"]+)", page)  # truth, and beside it what was found
    picture = cv2.imdecode(
        np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR_RGB
    ).astype(int)
    scale = max(picture.shape) / max(image.height, image.width)

    def redness(place):
        x, y = (place * scale).astype(int)
        return picture[y, x, 0] - picture[y, x, 2]

    # The ellipse is painted red, sky blue lies over it; the corner is grey below vermilion.
    unpainted = read_image(data.image_path(image)).astype(int)
    x, y = first.parts[0].mean(axis=0).astype(int)
    assert redness(first.parts[0].mean(axis=0)) < unpainted[y, x, 0] - unpainted[y, x, 2] - 40
    assert redness(corner) > 30
    assert "1 found, 0 missed, 1 false" in page


def test_pictures_of_any_content_stay_within_the_pages_budget():
    noise = np.random.default_rng(0).integers(0, 255, (900, 1200, 3)).astype(np.uint8)
    pictures = make_figures([(noise, "noise", "")] * 12, expected=12)
    assert sum(len(uri) for picture in pictures for uri in picture.uris) < 1_700_000


def test_samples_are_spread_over_the_data():
    assert spread(range(100), 4) == [0, 25, 50, 75]
    assert spread("ab", 4) == ["a", "b"]


def elements(chart, name):
    return [element for element in ElementTree.fromstring(chart).iter() if element.tag == name]


def test_bars_are_as_high_as_their_values_and_stack_without_gaps():
    chart = bar_chart(["a", "b"], {"x": [1, 3], "y": [2, 1]}, x_label="", y_label="", stacked=True)
    boxes = [[float(bar.get(key)) for key in ("y", "height")] for bar in elements(chart, "rect")]
    heights = [height for _, height in boxes]
    np.testing.assert_allclose(np.divide(heights, heights[0]), [1, 2, 3, 1], atol=0.01)
    assert boxes[1][0] + boxes[1][1] == pytest.approx(boxes[0][0], abs=0.2)


def test_lines_start_at_the_left_and_end_at_the_right():
    chart = line_chart({"one": [(0, 0), (1, 1)]}, x_label="recall", y_label="precision")
    [line] = elements(chart, "polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x0 < x1
    assert y0 > y1
    assert [text.text for text in elements(chart, "text")].count("0.6") == 2


def test_names_in_charts_are_escaped():
    chart = scatter_chart({"<a&b>.png": (3, 4)}, x_label="x < y", y_label="")
    assert "<a&b>" not in chart
    [title] = elements(chart, "title")
    assert title.text == "<a&b>.png: 3, 4"
