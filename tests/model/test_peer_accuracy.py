"""The accuracy by which benchmarks/peers.py compares networks is TP / (TP + FP + FN)."""

import runpy
from pathlib import Path

import numpy as np
import pytest

JUDGE = Path(__file__).parents[2] / "benchmarks" / "peer_networks" / "judge.py"


@pytest.fixture(scope="module")
def judge():
    return runpy.run_path(str(JUDGE))


def row(*runs):
    """Return a label image of one row: so many pixels of each value."""
    return np.concatenate([np.full(count, value) for count, value in runs])[None]


def test_equal_images_have_accuracy_one_whatever_the_numbers_are(judge):
    truth, found = row((3, 0), (5, 1), (5, 2)), row((3, 0), (5, 9), (5, 4))
    assert judge["accuracies"]([truth], [found]) == [1, 1, 1, 1, 1]


def test_an_object_counts_up_to_its_iou(judge):
    truth, found = row((10, 1), (10, 0)), row((7, 1), (13, 0))
    assert judge["accuracies"]([truth], [found]) == [1, 1, 1, 0, 0]


def test_missed_and_false_objects_of_all_images_count_together(judge):
    one, nothing = row((5, 1), (5, 0)), row((10, 0))
    truths, founds = [one, one, nothing, nothing], [one, nothing, one, nothing]
    assert judge["accuracies"](truths, founds) == pytest.approx([1 / 3] * 5)


def test_half_of_an_object_matches_only_once(judge):
    truth, found = row((10, 1)), row((5, 1), (5, 2))
    assert judge["accuracies"]([truth], [found])[:2] == [0.5, 0]


def test_the_best_score_lies_on_top_and_low_scores_are_left_out(judge):
    from polarmask.geometry.masks import rles_from_labels

    (wide,), (narrow,) = (rles_from_labels(row(*runs)) for runs in (((6, 1),), ((3, 1), (3, 0))))
    (low,) = rles_from_labels(row((5, 0), (1, 1)))
    found = {"rles": [low, wide, narrow], "scores": [0.1, 0.4, 0.8]}
    assert judge["label_image"](found, 0.4, (1, 6)).tolist() == [[1, 1, 1, 2, 2, 2]]
