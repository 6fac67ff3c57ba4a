"""The closed form of a soft star mask, with which `benchmarks/star_mask_bound.py` fits rays."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "star_mask_bound.py"))
inside, fitted = BENCHMARK["inside"], BENCHMARK["fitted"]
RAYS, SPACING = BENCHMARK["RAYS"], BENCHMARK["SPACING"]


def star(rng):
    return torch.from_numpy(rng.uniform(2, 12, RAYS))


def points(rng, count):
    """Return distances and angles (count,) around the center."""
    drawn = rng.uniform((0.01, 0), (15, 2 * math.pi), (count, 2))
    return torch.from_numpy(drawn[:, 0]), torch.from_numpy(drawn[:, 1])


def is_in_a_triangle(ray_R, distance, angle):
    """Return whether a point is in one of the triangles of the center and two neighbouring rays."""
    point = np.array([distance * math.cos(angle), distance * math.sin(angle)])
    for ray in range(RAYS):
        angles = (ray * SPACING, (ray + 1) * SPACING)
        lengths = (float(ray_R[ray]), float(ray_R[(ray + 1) % RAYS]))
        corners = [
            (length * math.cos(a), length * math.sin(a))
            for length, a in zip(lengths, angles, strict=True)
        ]
        first, second = np.linalg.solve(np.array(corners).T, point)
        if first >= 0 and second >= 0 and first + second <= 1:
            return True
    return False


@pytest.mark.parametrize("seed", range(3))
def test_the_closed_form_is_the_polygon(seed):
    rng = np.random.default_rng(seed)
    ray_R = star(rng)
    distance_S, angle_S = points(rng, 200)
    found_S = inside(ray_R, distance_S, angle_S, 1e-9) > 0.5
    wanted_S = [
        is_in_a_triangle(ray_R, distance, angle)
        for distance, angle in zip(distance_S.tolist(), angle_S.tolist(), strict=True)
    ]
    assert 20 < sum(wanted_S) < 180
    assert found_S.tolist() == wanted_S


def test_its_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    ray_R = star(rng).requires_grad_()
    distance_S, angle_S = points(rng, 50)
    assert torch.autograd.gradcheck(lambda ray_R: inside(ray_R, distance_S, angle_S, 0.7), (ray_R,))


def test_rays_learn_from_the_mask_what_no_crossing_tells():
    """Half of a disc is a comb: crossings reach the tips of its teeth, and half of it is empty."""
    rows, columns = np.mgrid[:80, :80] + 0.5
    distance, angle = np.hypot(columns - 40, rows - 40), np.arctan2(rows - 40, columns - 40)
    tooth = (angle > 0) & (np.sin(18 * angle + math.pi / 2) < 0) & (distance > 15)
    bitmap = ((distance < 35) & ~tooth).astype(np.uint8)
    tips_R = torch.full((RAYS,), 35.0)
    fitted_R = fitted(tips_R, np.array([40.0, 40.0]), bitmap, (5, 5, 75, 75))

    def iou(ray_R):
        drawn = inside(
            ray_R.double(), *map(torch.from_numpy, (distance, angle % (2 * math.pi))), 1e-9
        )
        drawn = drawn.numpy() > 0.5
        return (drawn & (bitmap > 0)).sum() / (drawn | (bitmap > 0)).sum()

    assert iou(fitted_R) > iou(tips_R) + 0.02
