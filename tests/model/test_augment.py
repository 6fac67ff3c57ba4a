"""Mirroring the labels equals labelling the mirrored objects: exactly, for all eight symmetries."""

from itertools import product

import numpy as np
import pytest
import torch

from factories import make_tiny_coco
from polarmask.config.input_settings import InputConfig
from polarmask.config.settings import LabelConfig, ModelConfig, RunConfig
from polarmask.data.coco import load_coco
from polarmask.data.images import read_image
from polarmask.data.labels import apply_to_labels
from polarmask.data.preprocess import to_canvas
from polarmask.geometry.locations import level_points
from polarmask.geometry.rays import decode_rays
from polarmask.geometry.symmetry import Symmetry, apply_to_image, draw_symmetry
from polarmask.labels.image_labels import label_image

CONFIG = RunConfig(
    name="test",
    model=ModelConfig(strides=(4, 8, 16), channels=32, backbone_norm="group"),
    input=InputConfig(short_side=None, max_side=4096),
    labels=LabelConfig(level_ranges=((0, 24), (24, 48), (48, float("inf")))),
)
SYMMETRIES = [Symmetry(*bits) for bits in product([False, True], repeat=3)]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    make_tiny_coco(folder, images=2)
    coco = load_coco(folder, "train")
    record = coco.images[0]
    labels = label_image(record, CONFIG)
    canvas = to_canvas(read_image(coco.image_path(record)), labels.canvas_hw, CONFIG.input)
    return labels, canvas


def move_points(point_P2, hw, symmetry):
    """Move points as pixels move."""
    x, y = point_P2[..., 0], point_P2[..., 1]
    rows, columns = hw
    if symmetry.transpose:
        x, y, rows, columns = y, x, columns, rows
    if symmetry.flip_x:
        x = columns - x
    if symmetry.flip_y:
        y = rows - y
    return np.stack([x, y], axis=-1)


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
def test_labels_move_with_the_pixels(labelled, symmetry):
    labels, _ = labelled
    moved = apply_to_labels(labels, symmetry, CONFIG.model.strides)
    before = level_points(torch.from_numpy(labels.location_P3), CONFIG.model.strides)
    after = level_points(torch.from_numpy(moved.location_P3), CONFIG.model.strides)
    np.testing.assert_allclose(
        after, move_points(before.numpy(), labels.canvas_hw, symmetry), atol=1e-4
    )
    polygon = decode_rays(before, torch.from_numpy(labels.ray_PR)).numpy()
    moved_polygon = decode_rays(after, torch.from_numpy(moved.ray_PR)).numpy()
    expected = move_points(polygon, labels.canvas_hw, symmetry)
    # Same vertices, in another order.
    distance = np.linalg.norm(moved_polygon[:, :, None] - expected[:, None], axis=-1)
    assert distance.min(axis=2).max() < 1e-3
    assert distance.min(axis=1).max() < 1e-3


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
def test_boxes_enclose_the_same_pixels_after_the_move(labelled, symmetry):
    labels, canvas = labelled
    moved = apply_to_labels(labels, symmetry, CONFIG.model.strides)
    image = apply_to_image(canvas, symmetry)
    assert image.shape[:2] == moved.canvas_hw
    for box, moved_box in zip(labels.box_G4.round(), moved.box_G4.round(), strict=True):
        x0, y0, x1, y1 = box.astype(int)
        u0, v0, u1, v1 = moved_box.astype(int)
        assert canvas[y0:y1, x0:x1].sum() == image[v0:v1, u0:u1].sum()


def test_data_with_an_up_is_only_mirrored_left_to_right():
    rng = np.random.default_rng(0)
    drawn = {draw_symmetry("flip", rng) for _ in range(50)}
    assert drawn == {Symmetry(), Symmetry(flip_x=True)}


def test_data_without_an_up_takes_all_eight_positions():
    rng = np.random.default_rng(0)
    assert {draw_symmetry("dihedral", rng) for _ in range(200)} == set(SYMMETRIES)
