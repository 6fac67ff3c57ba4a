import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polarmask.geometry.masks import rle_iou, rles_from_polygons
from polarmask.geometry.rays import MIN_LENGTH, Polygons, cast_rays, decode_rays
from reference.polar_loops import contains, decode_one_by_one, ray_length

SQUARE = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
# A C that opens to the right: from its left bar a ray to the right crosses the outline three times.
LETTER_C = torch.tensor([[0.0, 0], [12, 0], [12, 3], [3, 3], [3, 9], [12, 9], [12, 12], [0, 12]])


def cast(point, polygon, num_rays):
    points = torch.tensor([point], dtype=torch.float32)
    owner = torch.zeros(1, dtype=torch.long)
    length_PR, inside_P = cast_rays(points, owner, Polygons.from_vertices([polygon]), num_rays)
    return length_PR[0], bool(inside_P[0])


def star(radii, center=(50.0, 50.0)):
    angle = np.arange(len(radii)) * 2 * math.pi / len(radii)
    return torch.tensor(
        np.stack([center[0] + radii * np.cos(angle), center[1] + radii * np.sin(angle)], axis=1),
        dtype=torch.float32,
    )


def test_first_ray_points_right_and_quarter_turn_points_down():
    length_R, _ = cast((2.0, 4.0), SQUARE, 4)
    assert length_R.tolist() == pytest.approx([8, 6, 2, 4])


def test_the_farthest_crossing_counts():
    length_R, inside = cast((1.5, 1.5), LETTER_C, 4)
    assert inside
    assert length_R.tolist() == pytest.approx([10.5, 10.5, 1.5, 1.5])


def test_a_ray_that_meets_nothing_is_never_zero():
    length_R, inside = cast((20.0, 5.0), SQUARE, 4)
    assert not inside
    assert length_R.tolist() == pytest.approx([MIN_LENGTH, MIN_LENGTH, 20, MIN_LENGTH])


def test_a_ray_through_a_vertex_is_counted_once():
    diamond = torch.tensor([[0.0, -5.0], [5.0, 0.0], [0.0, 5.0], [-5.0, 0.0]])
    length_R, inside = cast((0.0, 0.0), diamond, 4)
    assert inside
    assert length_R.tolist() == pytest.approx([5, 5, 5, 5])


@given(seed=st.integers(0, 2**32 - 1), corners=st.integers(3, 40), num_rays=st.integers(4, 50))
def test_casting_agrees_with_the_definition(seed, corners, num_rays):
    rng = np.random.default_rng(seed)
    polygon = torch.tensor(rng.uniform(0, 300, (corners, 2)), dtype=torch.float64)
    points = torch.tensor(rng.uniform(0, 300, (5, 2)), dtype=torch.float64)
    polygons = Polygons.from_vertices([polygon])
    length_PR, inside_P = cast_rays(points, torch.zeros(5, dtype=torch.long), polygons, num_rays)
    for point, length_R, inside in zip(points.tolist(), length_PR, inside_P, strict=True):
        assert contains(point, polygon.tolist()) == bool(inside)
        for k, length in enumerate(length_R.tolist()):
            angle = 2 * math.pi * k / num_rays
            expected = ray_length(point, polygon.tolist(), angle) or MIN_LENGTH
            assert length == pytest.approx(expected, abs=1e-6)


def test_each_point_sees_only_its_own_polygon_in_any_chunking(monkeypatch):
    polygons = Polygons.from_vertices([SQUARE, LETTER_C + 100, SQUARE * 3])
    points = torch.tensor([[5.0, 5], [101.5, 101.5], [15.0, 15], [1.0, 1]])
    owners = torch.tensor([0, 1, 2, 2])
    whole = cast_rays(points, owners, polygons, 36)
    monkeypatch.setattr("polarmask.geometry.rays._MAX_PAIRS", 1)
    split = cast_rays(points, owners, polygons, 36)
    assert torch.equal(whole[0], split[0])
    assert whole[0][0].max() < 8


def test_decode_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    center_P2 = torch.tensor(rng.uniform(0, 1200, (20, 2)), dtype=torch.float32)
    length_PR = torch.tensor(rng.uniform(1, 300, (20, 36)), dtype=torch.float32)
    pairs = zip(center_P2.tolist(), length_PR.tolist(), strict=True)
    expected = torch.tensor([decode_one_by_one(center, lengths) for center, lengths in pairs])
    # 1e-3 px: float32 has about 7 digits and coordinates reach 1,200.
    torch.testing.assert_close(decode_rays(center_P2, length_PR), expected, atol=1e-3, rtol=0)


@given(seed=st.integers(0, 2**32 - 1))
def test_a_smooth_star_convex_shape_survives_36_rays(seed):
    """Encode then decode keeps IoU >= 0.97 (issue 2), with masks as the judge."""
    rng = np.random.default_rng(seed)
    angle = np.arange(360) * 2 * math.pi / 360
    radii = rng.uniform(40, 80) + sum(
        rng.uniform(-5, 5) * np.cos(order * angle + rng.uniform(0, 7)) for order in range(1, 5)
    )
    polygon = star(radii, (120.0, 130.0))
    length_PR, inside_P = cast_rays(
        torch.tensor([[120.0, 130.0]]),
        torch.zeros(1, dtype=torch.long),
        Polygons.from_vertices([polygon]),
        36,
    )
    decoded = decode_rays(torch.tensor([[120.0, 130.0]]), length_PR)[0]
    assert inside_P.all()
    before, after = rles_from_polygons([polygon.double().numpy(), decoded.numpy()], (256, 256))
    assert rle_iou([before], [after])[0, 0] >= 0.97


@pytest.mark.parametrize("scale", [0.25, 1.7, 3.0])
def test_scaling_commutes_with_encoding(scale):
    before, _ = cast((1.5, 4.0), LETTER_C, 36)
    after, _ = cast((1.5 * scale, 4.0 * scale), LETTER_C * scale, 36)
    torch.testing.assert_close(after, before * scale, atol=1e-4, rtol=1e-4)


def test_area_and_mass_centre_of_known_shapes():
    triangle = torch.tensor([[100.0, 100.0], [106.0, 100.0], [100.0, 103.0]])
    area_G, center_G2 = Polygons.from_vertices([SQUARE, triangle]).area_and_centroid()
    assert area_G.tolist() == pytest.approx([100, 9])
    assert center_G2.flatten().tolist() == pytest.approx([5, 5, 102, 101])


def test_a_polygon_without_area_has_the_mean_of_its_vertices_as_centre():
    line = torch.tensor([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    area_G, center_G2 = Polygons.from_vertices([line]).area_and_centroid()
    assert area_G.tolist() == [0]
    assert center_G2[0].tolist() == [4, 0]


def test_no_points_give_no_rays():
    length_PR, inside_P = cast_rays(
        torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), Polygons.from_vertices([SQUARE]), 36
    )
    assert length_PR.shape == (0, 36)
    assert inside_P.shape == (0,)
