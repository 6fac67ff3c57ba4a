import contextlib
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from factories import (
    TINY_CATEGORIES,
    coco_annotation,
    coco_data,
    ellipse,
    make_instances,
    make_tiny_coco,
    perfect_predictions,
)
from polarmask.config.presets import tiny
from polarmask.config.settings import ModelConfig
from polarmask.data.coco import Annotation, Category, ImageRecord, load_coco
from polarmask.errors import DataError
from polarmask.evaluation.coco_ap import score_predictions
from polarmask.evaluation.evaluate import (
    Evaluation,
    evaluate,
    evaluate_predictions,
    evaluate_split,
)
from polarmask.evaluation.predict_split import predict_split
from polarmask.evaluation.whole_machine import choose_processes, evaluate_on_machine
from polarmask.geometry.outlines import read_outline
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask

CATEGORIES = (Category(3, "cell"), Category(8, "tube"))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return load_coco(
        make_tiny_coco(tmp_path_factory.mktemp("drawn"), images=3, val_images=3), "val"
    )


def square(x, y, side=10.0):
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])


def record(image_id, objects, *, hw=(100, 100)):
    """Return an image with (polygon, category index, crowd) objects; ids begin with 0."""
    annotations = []
    for number, (polygon, category, crowd) in enumerate(objects):
        outline = read_outline({"segmentation": [polygon.reshape(-1).tolist()]}, hw, crowd=crowd)
        annotations.append(
            Annotation(
                id=number,
                category=category,
                parts=outline.parts,
                bbox=outline.bbox,
                area=outline.area,
                crowd=crowd,
                segmentation=outline.segmentation,
            )
        )
    return ImageRecord(image_id, f"{image_id}.png", hw[1], hw[0], tuple(annotations))


def dataset(tmp_path, *images, categories=CATEGORIES):
    return coco_data(tmp_path, categories, images)


def test_ground_truth_fed_back_has_an_ap_of_one(drawn):
    result = evaluate_predictions(drawn, perfect_predictions(drawn))
    values = (result.mask_ap, result.mask_ap50, result.mask_ap75, result.mask_ar)
    assert values == pytest.approx((1, 1, 1, 1))
    assert result.mask_ap_small == pytest.approx(1)
    assert math.isnan(result.mask_ap_large)
    assert all(category.ap == pytest.approx(1) for category in result.per_category)
    # 0.01: predictions are float32, and a rounded vertex can move a border pixel.
    assert all(image.quality == pytest.approx(1, abs=0.01) for image in result.per_image)
    np.testing.assert_allclose(result.precision_recall, 1)
    assert result.num_instances == sum(category.instances for category in result.per_category)


def test_ap_of_two_hits_and_a_miss_between_is_what_a_hand_computes(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False), (square(50, 50), 0, False)]))
    found = make_instances(
        (100, 100), [(square(0, 0), 0.9, 3), (square(20, 70), 0.8, 3), (square(50, 50), 0.7, 3)]
    )
    result = evaluate_predictions(data, {1: found})
    # Precision is 1 up to a recall of one half (51 of 101 points) and 2/3 beyond.
    assert result.mask_ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert result.mask_ap == pytest.approx(result.mask_ap50)
    np.testing.assert_allclose(
        result.precision_recall[:, [0, 50, 51, 100]], [[1, 1, 2 / 3, 2 / 3]] * 3
    )
    [image] = result.per_image
    # Keeping all three has F1 4/5, keeping the best alone 2/3.
    assert result.operating_score == pytest.approx(0.7)
    assert result.best_f1 == pytest.approx(0.8)
    assert (image.true_positives, image.false_positives, image.false_negatives) == (2, 1, 0)
    assert image.quality == pytest.approx(2 / 2.5)
    assert result.score_histogram.sum(axis=1).tolist() == [2, 1]


def test_curves_over_the_score_threshold_are_what_a_hand_computes(tmp_path):
    objects = [(square(0, 0), 0, False), (square(50, 50, 20.0), 0, False)]
    data = dataset(tmp_path, record(1, objects))
    # IoU of the second is 2/3.
    found = make_instances(
        (100, 100),
        [(square(0, 0), 0.9, 3), (square(20, 70), 0.8, 3), (square(54, 50, 20.0), 0.7, 3)],
    )
    result = evaluate_predictions(data, {1: found})
    at = [0, 69, 71, 79, 81, 89, 91]  # scores are float32
    np.testing.assert_allclose(result.thresholds[0, at], [2 / 3, 2 / 3, 0.5, 0.5, 1, 1, 1])
    np.testing.assert_allclose(result.thresholds[1, at], [1, 1, 0.5, 0.5, 0.5, 0.5, 0])
    np.testing.assert_allclose(result.thresholds[2, at], [0.8, 0.8, 0.5, 0.5, 2 / 3, 2 / 3, 0])
    # Sides of 10 and 20 are in the bins 8 to 16 and 16 to 24.
    assert result.found_by_size[:, :4].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert result.found_by_size.sum() == result.num_instances


def test_objects_found_as_another_category_are_confusions_and_not_misses(tmp_path):
    objects = [(square(20 * place, 0), place % 2, False) for place in range(4)]
    data = dataset(tmp_path, record(1, objects))
    found = make_instances(
        (100, 100),
        [
            *((square(20 * place, 0), 0.9, 3) for place in (0, 1, 2)),
            *((square(20 * place, 60), 0.95, 8) for place in (0, 3)),
            (square(60, 0), 0.9, 8),
        ],
    )
    result = evaluate_predictions(data, {1: found})
    # True cells are found; of the tubes one is found as a cell. Two false tubes.
    assert result.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 2, 0]]


def test_a_shifted_mask_counts_only_below_its_iou(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False)]))
    shifted = make_instances((100, 100), [(square(2, 0), 0.9, 3)])
    result = evaluate_predictions(data, {1: shifted})
    # IoU is 80 / 120: thresholds .5, .55, .6 and .65 are met, six others are not.
    assert result.mask_ap == pytest.approx(0.4)
    assert (result.mask_ap50, result.mask_ap75) == pytest.approx((1, 0))
    assert result.per_image[0].quality == pytest.approx(2 / 3)


def test_the_object_with_id_zero_counts_like_any_other(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False)]))
    assert data.images[0].annotations[0].id == 0
    assert evaluate_predictions(data, perfect_predictions(data)).mask_ap == pytest.approx(1)


def test_detections_inside_a_crowd_region_are_forgiven(tmp_path):
    region = (square(40, 40, 50.0), 0, True)
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False), region]))
    inside = [(square(45 + 12 * step, 60), 0.95, 3) for step in range(3)]
    found = make_instances((100, 100), [(square(0, 0), 0.9, 3), *inside])
    result = evaluate_predictions(data, {1: found})
    assert result.mask_ap == pytest.approx(1)
    assert result.num_instances == 1
    assert result.per_image[0].detections == 1


def test_categories_without_objects_are_left_out_of_the_means(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 1, False)]))
    found = make_instances((100, 100), [(square(0, 0), 0.9, 8), (square(0, 0), 0.9, 3)])
    result = evaluate_predictions(data, {1: found})
    assert result.mask_ap == pytest.approx(1)
    assert [category.name for category in result.per_category] == ["tube"]


def test_images_without_predictions_are_all_missed(drawn):
    result = evaluate_predictions(drawn, {})
    assert result.mask_ap == 0
    assert (result.operating_score, result.best_f1) == (1, 0)
    assert sum(image.false_negatives for image in result.per_image) == result.num_instances
    assert all(image.quality == 0 for image in result.per_image)


def test_an_image_with_neither_object_nor_detection_has_no_quality(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False)]), record(2, []))
    empty = evaluate_predictions(data, perfect_predictions(data)).per_image[1]
    assert math.isnan(empty.quality)
    assert (empty.objects, empty.detections) == (0, 0)


def crowded_scene(rng):
    """Return 2 images of 150 and 20 objects of two categories, and noisy detections."""
    truths, found = {}, {}
    for image_id, number in ((1, 150), (2, 20)):
        truths[image_id], found[image_id] = [], []
        for index in range(number):
            center = np.array([20 + 35 * (index % 15), 20 + 35 * (index // 15)])
            polygon = rng.uniform(6, 16) * ellipse(24) + center
            category = int(rng.integers(2))
            truths[image_id].append((polygon, category, bool(rng.random() < 0.05)))
            for _ in range(int(rng.integers(4))):
                noisy = (polygon - center) * rng.uniform(0.85, 1.1) + center + rng.normal(0, 1, 2)
                category_id = CATEGORIES[category].id if rng.random() < 0.9 else 3
                found[image_id].append((noisy.clip(0, 560), float(rng.random()), category_id))
    return truths, found


def referee_alone(truths, found, max_detections, *, categories=CATEGORIES, side=560):
    """Judge by pycocotools as its own documentation does, from plain dictionaries."""
    ids = iter(range(1, 10_000))
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image_id, "width": side, "height": side} for image_id in truths],
        "categories": [{"id": category.id, "name": category.name} for category in categories],
        "annotations": [
            coco_annotation(
                next(ids), image_id, categories[category].id, polygon, iscrowd=int(crowd)
            )
            for image_id, objects in truths.items()
            for polygon, category, crowd in objects
        ],
    }
    truth.createIndex()
    results = [
        {
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": [polygon.astype(np.float32).reshape(-1).tolist()],
            "score": float(np.float32(score)),
        }
        for image_id, objects in found.items()
        for polygon, score, category_id in objects
    ]
    for entry in results:
        entry["segmentation"] = truth.annToRLE(entry)
    referee = COCOeval(truth, truth.loadRes(results), "segm")
    referee.params.maxDets = [max_detections]
    referee.evaluate()
    referee.accumulate()
    return referee.eval["precision"][..., 0], referee.eval["recall"][..., 0]


def test_crowded_images_agree_with_pycocotools_at_raised_limits(tmp_path, capsys):
    truths, found = crowded_scene(np.random.default_rng(5))
    # Both sides must read the same rounded outlines.
    truths = {
        image_id: [(polygon.round(2), category, crowd) for polygon, category, crowd in objects]
        for image_id, objects in truths.items()
    }
    data = dataset(
        tmp_path,
        *(record(image_id, objects, hw=(560, 560)) for image_id, objects in truths.items()),
    )
    result = evaluate_predictions(
        data, {key: make_instances((560, 560), objects) for key, objects in found.items()}
    )
    assert capsys.readouterr().out == ""
    assert result.max_detections == 500
    with contextlib.redirect_stdout(io.StringIO()):
        precision, recall = referee_alone(truths, found, 500)
    for ours, theirs in (
        (result.mask_ap, precision[..., 0]),
        (result.mask_ap50, precision[0, ..., 0]),
        (result.mask_ap75, precision[5, ..., 0]),
        (result.mask_ap_small, precision[..., 1]),
        (result.mask_ar, recall[..., 0]),
    ):
        assert 0.05 < ours < 0.95
        assert ours == pytest.approx(theirs[theirs > -1].mean(), abs=1e-12)


IDS = (0, 1, 7, -1, -5, 10**6, 2**31, 2**53, 2**53 + 1, 2**53 + 2, 2**63 - 1, -(2**63))


def small_scene(rng):
    """Return categories, objects and noisy detections; ids are of any size, and scores repeat."""
    category_ids = sorted(rng.choice(len(IDS), 1 + rng.integers(3), replace=False).tolist())
    categories = [Category(key, str(key)) for key in sorted(IDS[at] for at in category_ids)]
    truths, found = {}, {}
    for at in rng.choice(len(IDS), 1 + rng.integers(4), replace=False).tolist():
        objects, detections = truths.setdefault(IDS[at], []), found.setdefault(IDS[at], [])
        for corner in rng.integers(0, 44, (1 + rng.integers(7), 2)):
            polygon = square(*corner, side=rng.integers(6, 20))
            category = int(rng.integers(len(categories)))
            objects.append((polygon, category, bool(rng.random() < 0.1)))
            for _ in range(rng.integers(0 if detections else 1, 3)):
                moved = polygon + rng.integers(-2, 3, 2)
                score = rng.choice([0.25, 0.5, 0.75])
                key = categories[int(rng.integers(len(categories)))].id
                detections.append((moved.clip(0, 64), score, key))
        detections.sort(key=lambda each: -each[1])
    return categories, truths, found


def test_sixty_random_sets_with_ids_of_any_size_score_as_by_pycocotools(tmp_path):
    rng = np.random.default_rng(14)
    scored = 0
    for _ in range(60):
        categories, truths, found = small_scene(rng)
        images = [record(key, objects, hw=(64, 64)) for key, objects in truths.items()]
        data = dataset(tmp_path, *images, categories=tuple(categories))
        instances = {key: make_instances((64, 64), each) for key, each in found.items()}
        scores = score_predictions(data, instances)
        with contextlib.redirect_stdout(io.StringIO()):
            precision, recall = referee_alone(truths, found, 100, categories=categories, side=64)
        np.testing.assert_array_equal(scores.precision_TQKA, precision)
        np.testing.assert_array_equal(scores.recall_TKA, recall)
        assert set(scores.image_D.tolist()) <= set(truths)
        scored += bool((precision > 0).any())
    assert scored > 40


def test_an_image_may_hold_more_objects_than_any_preset_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("polarmask.evaluation.coco_ap._DETECTION_LIMITS", (1, 2))
    objects = [(square(20 * at, 0), 0, False) for at in range(3)]
    data = dataset(tmp_path, record(1, objects))
    result = evaluate_predictions(data, perfect_predictions(data))
    assert (result.mask_ap, result.max_detections) == (pytest.approx(1), 3)


def test_results_survive_json_without_nan_tokens(tmp_path):
    data = dataset(tmp_path, record(1, [(square(0, 0), 0, False)]), record(2, []))
    result = evaluate_predictions(data, perfect_predictions(data))
    text = result.to_json()
    assert "NaN" not in text
    again = json.loads(text)
    assert math.isnan(result.mask_ap_large)
    assert again["mask_ap_large"] is None
    assert again["per_category"] == [asdict(category) for category in result.per_category]
    assert again["mask_ap"] == result.mask_ap
    assert Evaluation.from_json(text).to_json() == text
    assert math.isnan(Evaluation.from_json(text).mask_ap_large)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    model = ModelConfig(
        backbone="resnet18",
        backbone_norm="group",
        num_classes=3,
        strides=(8,),
        channels=32,
        tower_depth=1,
    )
    config = tiny()
    config = replace(
        config, model=model, labels=replace(config.labels, level_ranges=((0, float("inf")),))
    )
    categories = tuple(Category(key, name) for key, name in TINY_CATEGORIES.items())
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, PolarMask(model), ModelCard(config, categories))
    return folder


def test_an_untrained_model_folder_is_judged_without_failing(untrained, drawn):
    result = evaluate(Predictor.load(untrained, threads=1), drawn.root)
    assert result.mask_ap < 0.1
    assert result.num_images == len(drawn.images)
    assert [image.image_id for image in result.per_image] == [image.id for image in drawn.images]


def test_every_image_is_predicted_in_its_own_size(untrained, drawn):
    predictions = predict_split(Predictor.load(untrained), drawn)
    sizes = {image.id: (image.height, image.width) for image in drawn.images}
    assert {key: found.image_hw for key, found in predictions.items()} == sizes


def test_a_model_whose_category_ids_mean_something_else_is_refused(untrained, drawn):
    other = replace(drawn, categories=(Category(2, "egg"), *drawn.categories[1:]))
    with pytest.raises(DataError, match="category 2 is 'egg', for the model it is 'ellipse'"):
        evaluate_split(Predictor.load(untrained), other)


def test_processes_of_a_machine_find_what_one_finds(untrained, drawn):
    open_model = partial(Predictor.load, untrained, threads=1)
    (one, _), (two, predictions) = (
        evaluate_on_machine(open_model(), open_model, drawn, processes=number) for number in (1, 2)
    )
    assert set(predictions) == {image.id for image in drawn.images}
    assert two.to_json() == one.to_json()


@pytest.mark.parametrize(
    ("images", "gpus", "cores", "processes"),
    [
        pytest.param(5000, 8, 64, 8, id="gpus"),
        pytest.param(5000, 1, 64, 1, id="one-gpu"),
        pytest.param(300, 8, 64, 1, id="few-images"),
        pytest.param(5000, 0, 64, 4, id="cores"),
        pytest.param(5000, 0, 2, 2, id="two-cores"),
        pytest.param(0, 0, 2, 1, id="no-images"),
    ],
)
def test_a_machine_gets_processes_that_pay(monkeypatch, images, gpus, cores, processes):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert choose_processes(images) == processes


@pytest.mark.slow
def test_two_processes_find_what_one_finds(untrained, drawn, tmp_path):
    evaluate_command = ("-m", "polarmask", "evaluate", "--device=cpu", "--threads=1")
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = [
        *(sys.executable, *together, *evaluate_command),
        *("--model", str(untrained), "--data", str(drawn.root), "--out", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mask AP") == 1
    assert (tmp_path / "evaluation.html").exists()
    written = (tmp_path / "evaluation.json").read_text()
    assert written == evaluate(Predictor.load(untrained, threads=1), drawn.root).to_json()
