"""How every network is judged: COCO mask AP by our own evaluation, and StarDist's accuracy.

Dimension key
    I: images    H, W: rows and columns    T: true objects    F: found objects    N: pairs
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polarmask.data.coco import load_coco
from polarmask.evaluation.evaluate import evaluate_predictions
from polarmask.geometry.masks import labels_from_rles

IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Found:
    """What the evaluation asks of `polarmask.Instances`, for masks of any network."""

    rles: Sequence[dict]
    """Best score first."""
    scores: np.ndarray
    category_ids: np.ndarray

    def rle(self):
        return list(self.rles)


def evaluation_of(data, split, found):
    """Evaluate what was found in the images of a split of a COCO folder, in their order.

    Args:
        data: Folder with `images/` and `annotations/`.
        split: "train" or "val".
        found: For each image a dict of `rles` and `scores`, in any order.
    """
    coco = load_coco(data, split)
    (category,) = coco.categories
    predictions = {}
    for image, one in zip(coco.images, found, strict=True):
        rles, scores = best_first(one)
        ids = np.full(len(scores), category.id)
        predictions[image.id] = Found(rles, scores, ids)
    return evaluate_predictions(coco, predictions)


def best_first(found):
    """Return masks and scores of an image, best score first."""
    scores = np.array(found["scores"], dtype=np.float32)
    order = np.argsort(-scores, kind="stable")
    return [found["rles"][row] for row in order], scores[order]


def operating_score(data, found):
    """Return the score with the best F1 on the train split."""
    return evaluation_of(data, "train", found).operating_score


def label_image(found, min_score, image_hw):
    """Return (H, W): 0 or the number of the best object there, of those with the score or more."""
    rles, scores = best_first(found)
    return labels_from_rles(rles[: int((scores >= min_score).sum())], image_hw)


def accuracies(truths, founds):
    """Return TP / (TP + FP + FN) over all images together, at each of `IOUS`.

    Args:
        truths: Label images (I, H, W); 0 is background.
        founds: The same of what was found.
    """
    true, objects = np.zeros(len(IOUS)), 0
    for truth_HW, found_HW in zip(truths, founds, strict=True):
        iou_TF = _iou(truth_HW, found_HW)
        true += [_matches(iou_TF, least) for least in IOUS]
        objects += sum(iou_TF.shape)
    return (true / np.maximum(objects - true, 1)).tolist()


def _iou(truth_HW, found_HW):
    true_values, true_HW = np.unique(truth_HW, return_inverse=True)
    values, own_HW = np.unique(found_HW, return_inverse=True)
    shape = len(true_values), len(values)
    pairs = true_HW.reshape(-1) * shape[1] + own_HW.reshape(-1)
    overlap_TF = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    union_TF = overlap_TF.sum(1, keepdims=True) + overlap_TF.sum(0, keepdims=True) - overlap_TF
    return (overlap_TF / np.maximum(union_TF, 1))[true_values > 0][:, values > 0]


def _matches(iou_TF, least):
    """Count pairs, best IoU first, of objects that have no better partner."""
    pair_N2 = np.argwhere(iou_TF >= least)
    order_N = np.argsort(-iou_TF[tuple(pair_N2.T)], kind="stable")
    rows, columns = set(), set()
    for row, column in pair_N2[order_N].tolist():
        if row not in rows and column not in columns:
            rows.add(row)
            columns.add(column)
    return len(rows)
