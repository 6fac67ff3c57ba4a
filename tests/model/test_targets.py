import math

import numpy as np
import pytest
import torch

from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.geometry.locations import Assignment, all_locations, level_points
from polarmask.geometry.rays import Polygons
from polarmask.labels.compiled_targets import assign_native
from polarmask.labels.targets import assign_batch
from reference.polar_loops import contains

MODEL = ModelConfig(strides=(4, 8), num_rays=36, channels=32)
LABELS = LabelConfig(level_ranges=((0, 24), (24, math.inf)))


def disc(x, y, radius, corners=40):
    angle = torch.arange(corners) * 2 * math.pi / corners
    return torch.stack([x + radius * angle.cos(), y + radius * angle.sin()], dim=1)


def by_numba(vertices, hw, **rules):
    arrays = assign_native([polygon.numpy() for polygon in vertices], hw, **rules)
    return Assignment(*(torch.from_numpy(array) for array in arrays))


def by_torch(vertices, hw, **rules):
    polygons = Polygons.from_vertices(vertices)
    image_G = torch.zeros(len(vertices), dtype=torch.long)
    return assign_batch(polygons, image_G, torch.tensor([hw]), **rules)


@pytest.fixture(params=[by_numba, by_torch])
def found(request):
    def find(vertices):
        return request.param(vertices, (64, 64), model=MODEL, labels=LABELS)

    return find


def test_locations_lie_in_the_middle_of_their_cells():
    points = level_points(torch.tensor([[0, 0, 0], [0, 2, 1], [1, 2, 1]]), (4, 8))
    assert points.tolist() == [[2, 2], [6, 10], [12, 20]]


def test_all_locations_are_listed_level_by_level_and_row_by_row():
    location_L3 = all_locations((64, 32), (4, 8))
    assert len(location_L3) == 16 * 8 + 8 * 4
    assert location_L3[[0, 1, 8, 128]].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_positives_are_the_locations_near_the_mass_centre_inside_the_object(found):
    """Slow definition: test every location of the canvas."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        x, y, radius = rng.uniform(10, 54), rng.uniform(10, 54), rng.uniform(5, 30)
        polygon = disc(x, y, radius)
        expected = set()
        for level, stride in enumerate(MODEL.strides):
            low, high = LABELS.level_ranges[level]
            for row in range(64 // stride):
                for column in range(64 // stride):
                    px, py = (column + 0.5) * stride, (row + 0.5) * stride
                    near = max(abs(px - x), abs(py - y)) < 1.5 * stride
                    sides = (px - x + radius, x + radius - px, py - y + radius, y + radius - py)
                    fits = min(sides) > 0 and low <= max(sides) <= high
                    if near and fits and contains((px, py), polygon.tolist()):
                        expected.add((level, row, column))
        got = {tuple(location) for location in found([polygon]).location_P3.tolist()}
        assert got == expected or (not expected and len(got) == 1)


def test_the_smallest_box_wins_a_contested_location(found):
    assignment = found([disc(32, 32, 14), disc(32, 32, 6)])
    level_0 = assignment.location_P3[:, 0] == 0
    contested = ((level_points(assignment.location_P3, (4, 8)) - 32).norm(dim=1) < 4) & level_0
    assert assignment.object_P[contested].unique().tolist() == [1]


@pytest.mark.parametrize("size", [0.4, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("place", [(4.0, 4.0), (5.7, 9.1), (63.9, 63.9), (0.1, 32.0)])
def test_every_object_gets_a_location_however_small(found, size, place):
    assignment = found([disc(*place, size)])
    assert len(assignment.object_P) >= 1
    assert (assignment.ray_PR > 0).all()


def test_a_crescent_whose_mass_centre_lies_outside_learns_from_inside(found):
    """2.4 % of COCO's objects are like this; the original trains on points outside them."""
    outer, inner = disc(32, 32, 20), disc(40, 32, 17)
    outer = outer[(outer - torch.tensor([40.0, 32.0])).norm(dim=1) > 17]
    inner = inner[(inner - torch.tensor([32.0, 32.0])).norm(dim=1) < 20]

    def by_angle(points, center):
        angle = torch.atan2(points[:, 1] - center[1], points[:, 0] - center[0]) % (2 * math.pi)
        return points[angle.argsort()]

    crescent = torch.cat([by_angle(outer, (32, 32)), by_angle(inner, (40, 32)).flip(0)])
    assignment = found([crescent])
    points = level_points(assignment.location_P3, MODEL.strides).tolist()
    assert points
    assert all(contains(point, crescent.tolist()) for point in points)


def test_crowded_objects_keep_one_location_each_while_any_is_free(found):
    discs = [disc(10 + 0.5 * i, 10 + 0.5 * i, 1.5 + 0.1 * i) for i in range(6)]
    assignment = found(discs)
    places = [tuple(location) for location in assignment.location_P3.tolist()]
    assert assignment.object_P.unique().tolist() == list(range(6))
    assert len(set(places)) == len(places)


def test_an_image_without_objects_has_no_positives(found):
    assignment = found([])
    assert assignment.location_P3.shape == (0, 3)
    assert assignment.ray_PR.shape == (0, 36)


def outlines(rng, count, hw):
    """Return objects of all kinds: smooth, spiky, crossing themselves, specks, on whole pixels."""
    found = []
    for _ in range(count):
        center = rng.uniform((0, 0), hw[::-1])
        corners = int(rng.integers(3, 60))
        radius = np.exp(rng.uniform(np.log(0.5), np.log(200)))
        angle = np.arange(corners) * 2 * np.pi / corners + rng.uniform(0, 7)
        wobble = rng.uniform(0.3, 1, corners) if rng.integers(2) else np.ones(corners)
        ends = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (radius * wobble)[:, None]
        polygon = (center + ends).clip(0, hw[::-1])
        if rng.integers(3) == 0:
            polygon = polygon.round()
        if rng.integers(4) == 0:
            polygon = rng.permutation(polygon)
        found.append(torch.from_numpy(polygon).float())
    return found


@pytest.mark.parametrize("seed", range(25))
def test_both_ways_of_assigning_agree_to_the_last_location_on_whole_batches(seed):
    """Rays to 1e-3 px (issue 6); which location learns which object, exactly."""
    rng = np.random.default_rng(seed)
    model = ModelConfig(num_rays=int(rng.choice([4, 36, 72])))
    labels = LabelConfig(center_radius=float(rng.choice([0.7, 1.5, 2.5])))
    sizes = [(256, 384), (128, 128), (384, 256), (640, 512)]
    images = [outlines(rng, int(rng.choice([0, 1, 8, 40])), hw) for hw in sizes]
    batch = assign_batch(
        Polygons.from_vertices([polygon for own in images for polygon in own]),
        torch.arange(4).repeat_interleave(torch.tensor([len(own) for own in images])),
        torch.tensor(sizes),
        model=model,
        labels=labels,
    )
    each = [
        by_numba(own, hw, model=model, labels=labels) for own, hw in zip(images, sizes, strict=True)
    ]
    first = np.cumsum([0, *(len(own) for own in images)]).tolist()
    objects = [one.object_P + start for one, start in zip(each, first, strict=False)]
    assert torch.equal(batch.object_P, torch.cat(objects))
    assert torch.equal(batch.location_P3, torch.cat([one.location_P3 for one in each]))
    torch.testing.assert_close(
        batch.ray_PR, torch.cat([one.ray_PR for one in each]), atol=1e-3, rtol=0
    )
