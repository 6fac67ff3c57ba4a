"""`targets.assign_batch` for one image on one CPU core, compiled to machine code.

The same rules and the same arithmetic, number by number, without the arrays in between: an image
of COCO's size takes a fraction of a millisecond. Compiled once at the first call (seconds) and
kept beside this file, or in NUMBA_CACHE_DIR; where nothing can be written, in memory.

Dimension key
    G: objects of one image    V: their vertices, object after object    L: levels
    K: candidate (object, location) pairs    P: positive locations    R: rays
    2: (x, y) in pixels of the network's input, or rows and columns
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.geometry.rays import MIN_LENGTH, direction_table
from polarmask.labels.targets import CELLS_AROUND

_ANGLE_MARGIN = 0.01
"""Ray spacings by which an edge's angles may be off; float64 has 1e-14."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    # No fastmath: sums in another order would take other sides than torch does.
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # "no locator available": a read-only file system, as in a pod
        return cast(_Function, numba.njit(nogil=True)(function))


def assign_native(
    vertices: list[NDArray[np.float32]],
    canvas_hw: tuple[int, int],
    *,
    model: ModelConfig,
    labels: LabelConfig,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return `targets.Assignment`'s arrays for one image; `targets.assign_batch` has the rules.

    Args:
        vertices: One (V, 2) array per object, V >= 3.
        canvas_hw: Rows and columns of the padded input, multiples of the coarsest stride.
        model: Strides and ray count.
        labels: Radius and level ranges.
    """
    if not vertices:
        nothing = np.zeros(0, dtype=np.int64)
        rays = np.zeros((0, model.num_rays), dtype=np.float32)
        return nothing.reshape(0, 3), nothing, rays
    offset_G1 = np.cumsum([0, *(len(polygon) for polygon in vertices)], dtype=np.int64)
    vertex_V2 = np.concatenate(vertices).astype(np.float32, copy=False)
    levels = _levels(canvas_hw, model, labels)
    location_P3, object_P = _assign(vertex_V2, offset_G1, levels, float(labels.center_radius))
    directions = direction_table(model.num_rays)
    ray_PR = _rays_of(location_P3, object_P, vertex_V2, offset_G1, levels.stride_L, directions)
    return location_P3, object_P, ray_PR


class _Levels(NamedTuple):
    """The levels of one canvas; locations are numbered by level, row and column."""

    stride_L: NDArray[np.int64]
    hw_L2: NDArray[np.int64]
    """Rows and columns."""
    first_L1: NDArray[np.int64]
    """Number of each level's first location; the last entry is the number of all."""
    range_L2: NDArray[np.float64]
    """Least and greatest farthest side of a box, in pixels."""


@lru_cache(maxsize=64)
def _levels(canvas_hw: tuple[int, int], model: ModelConfig, labels: LabelConfig) -> _Levels:
    stride_L = np.array(model.strides, dtype=np.int64)
    hw_L2 = np.array(canvas_hw, dtype=np.int64) // stride_L[:, None]
    first_L1 = np.cumsum([0, *hw_L2.prod(axis=1)], dtype=np.int64)
    return _Levels(stride_L, hw_L2, first_L1, np.array(labels.level_ranges, dtype=np.float64))


class _Object(NamedTuple):
    """One object: its outline, mass centre, and box x0, y0, x1, y1."""

    polygon_V2: NDArray[np.float32]
    center_2: NDArray[np.float64]
    box_4: NDArray[np.float64]


@_compiled
def _assign(
    vertex_V2: NDArray[np.float32], offset_G1: NDArray[np.int64], levels: _Levels, radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return location_P3 and object_P, by object and then by level, row and column."""
    num_objects = len(offset_G1) - 1
    center_G2, box_G4 = np.empty((num_objects, 2)), np.empty((num_objects, 4))
    for g in range(num_objects):
        _measure(vertex_V2[offset_G1[g] : offset_G1[g + 1]], center_G2[g], box_G4[g])
    area_G = (box_G4[:, 2] - box_G4[:, 0]) * (box_G4[:, 3] - box_G4[:, 1])
    owner = np.full(levels.first_L1[-1], -1, np.int64)
    for g in range(num_objects):
        polygon_V2 = vertex_V2[offset_G1[g] : offset_G1[g + 1]]
        each = _Object(polygon_V2, center_G2[g], box_G4[g])
        for level in range(len(levels.stride_L)):
            _claim(g, each, area_G, level, levels, radius, owner)
    num_G = np.zeros(num_objects, np.int64)
    for place in range(len(owner)):
        if owner[place] >= 0:
            num_G[owner[place]] += 1
    for g in range(num_objects):
        if num_G[g] > 0:
            continue
        polygon_V2 = vertex_V2[offset_G1[g] : offset_G1[g + 1]]
        place = _rescue(_Object(polygon_V2, center_G2[g], box_G4[g]), owner, levels)
        if place >= 0:
            owner[place] = g
            num_G[g] = 1
    return _listed(owner, num_G, levels)


@_compiled
def _claim(
    g: int,
    own: _Object,
    area_G: NDArray[np.float64],
    level: int,
    levels: _Levels,
    radius: float,
    owner: NDArray[np.int64],
) -> None:
    """Give an object the locations of a level that it wants and no smaller object has.

    Of equally small objects the first keeps a location.
    """
    stride, rows, columns = levels.stride_L[level], levels.hw_L2[level, 0], levels.hw_L2[level, 1]
    low, high = levels.range_L2[level, 0], levels.range_L2[level, 1]
    reach = int(radius) + 1
    middle_row = math.floor(own.center_2[1] / stride)
    middle_column = math.floor(own.center_2[0] / stride)
    for row in range(max(middle_row - reach, 0), min(middle_row + reach + 1, rows)):
        for column in range(max(middle_column - reach, 0), min(middle_column + reach + 1, columns)):
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            place = levels.first_L1[level] + row * columns + column
            if (
                _is_candidate(x, y, own, radius * stride, low, high)
                and (owner[place] < 0 or area_G[g] < area_G[owner[place]])
                and _is_inside(x, y, own.polygon_V2)
            ):
                owner[place] = g


@_compiled
def _is_candidate(x: float, y: float, own: _Object, radius: float, low: float, high: float) -> bool:
    """Return whether a point is near the centre and in the box, with its farthest side in range."""
    if not (abs(x - own.center_2[0]) < radius and abs(y - own.center_2[1]) < radius):
        return False
    left, top = x - own.box_4[0], y - own.box_4[1]
    right, bottom = own.box_4[2] - x, own.box_4[3] - y
    farthest = max(max(left, top), max(right, bottom))
    nearest = min(min(left, top), min(right, bottom))
    return bool(nearest > 0 and low <= farthest <= high)


@_compiled
def _measure(
    polygon: NDArray[np.float32], center: NDArray[np.float64], box: NDArray[np.float64]
) -> None:
    """Write a polygon's mass centre and box.

    The centre is rounded to float32, so that sums in any order decide alike whether a location
    lies just within the radius.
    """
    x_first, y_first = float(polygon[0, 0]), float(polygon[0, 1])
    twice_area = moment_x = moment_y = sum_x = sum_y = 0.0
    box[0] = box[2] = x_first
    box[1] = box[3] = y_first
    for v in range(len(polygon)):
        after = v + 1 if v + 1 < len(polygon) else 0
        ax, ay = float(polygon[v, 0]) - x_first, float(polygon[v, 1]) - y_first
        bx, by = float(polygon[after, 0]) - x_first, float(polygon[after, 1]) - y_first
        cross = ax * by - ay * bx
        twice_area += cross
        moment_x += (ax + bx) * cross
        moment_y += (ay + by) * cross
        sum_x += ax
        sum_y += ay
        box[0], box[2] = min(box[0], float(polygon[v, 0])), max(box[2], float(polygon[v, 0]))
        box[1], box[3] = min(box[1], float(polygon[v, 1])), max(box[3], float(polygon[v, 1]))
    if abs(twice_area) < 1e-6:
        x, y = sum_x / len(polygon), sum_y / len(polygon)
    else:
        x, y = moment_x / (3 * twice_area), moment_y / (3 * twice_area)
    center[0], center[1] = np.float32(x_first + x), np.float32(y_first + y)


@_compiled
def _is_inside(x: float, y: float, polygon: NDArray[np.float32]) -> bool:
    """Count the crossings of the ray to the right, as `_cast` does for ray 0."""
    inside = False
    last = len(polygon) - 1
    ax, ay = float(polygon[last, 0]) - x, float(polygon[last, 1]) - y
    for v in range(len(polygon)):
        bx, by = float(polygon[v, 0]) - x, float(polygon[v, 1]) - y
        if (ay > 0) != (by > 0) and (ax * by - bx * ay) / (by - ay) >= 0:
            inside = not inside
        ax, ay = bx, by
    return inside


@_compiled
def _rescue(own: _Object, owner: NDArray[np.int64], levels: _Levels) -> int:
    """Return the best free location for an object that has none; -1 if there is none.

    Inside the object: the nearest to its centre on its own level, or on the next finer one, and so
    on. Else the nearest of those in its box and around its centre.
    """
    half_side = max(own.box_4[2] - own.box_4[0], own.box_4[3] - own.box_4[1]) / 2
    own_level = 0
    while half_side > levels.range_L2[own_level, 1]:
        own_level += 1
    for level in range(own_level, -1, -1):
        place, _ = _nearest_free(_cells_in_box(own, level, levels), own, True, owner, levels)
        if place >= 0:
            return place
    nearest, distance = -1, np.inf
    for level in range(own_level, -1, -1):
        cells = _cells_in_box(own, level, levels)
        place, found = _nearest_free(cells, own, False, owner, levels)
        if found < distance:
            nearest, distance = place, found
    place, found = _nearest_free(_cells_around_center(own, levels), own, False, owner, levels)
    return place if found < distance else nearest


class _Cells(NamedTuple):
    """A rectangle of one level's locations."""

    level: int
    first_row: int
    end_row: int
    first_column: int
    end_column: int


@_compiled
def _cells_in_box(own: _Object, level: int, levels: _Levels) -> _Cells:
    stride, rows, columns = levels.stride_L[level], levels.hw_L2[level, 0], levels.hw_L2[level, 1]
    return _Cells(
        level,
        max(math.ceil(own.box_4[1] / stride - 0.5), 0),
        min(math.floor(own.box_4[3] / stride - 0.5), rows - 1) + 1,
        max(math.ceil(own.box_4[0] / stride - 0.5), 0),
        min(math.floor(own.box_4[2] / stride - 0.5), columns - 1) + 1,
    )


@_compiled
def _cells_around_center(own: _Object, levels: _Levels) -> _Cells:
    """Return cells of the finest level; at the canvas's border at least the outermost ones."""
    last_row, last_column = levels.hw_L2[0, 0] - 1, levels.hw_L2[0, 1] - 1
    row = math.floor(own.center_2[1] / levels.stride_L[0])
    column = math.floor(own.center_2[0] / levels.stride_L[0])
    return _Cells(
        0,
        min(max(row - CELLS_AROUND, 0), last_row),
        min(max(row + CELLS_AROUND, 0), last_row) + 1,
        min(max(column - CELLS_AROUND, 0), last_column),
        min(max(column + CELLS_AROUND, 0), last_column) + 1,
    )


@_compiled
def _nearest_free(
    cells: _Cells,
    own: _Object,
    must_be_inside: bool,
    owner: NDArray[np.int64],
    levels: _Levels,
) -> tuple[int, float]:
    """Return the free location nearest to the centre and its squared distance; -1, inf if none."""
    stride, columns = levels.stride_L[cells.level], levels.hw_L2[cells.level, 1]
    first, center_x, center_y = levels.first_L1[cells.level], own.center_2[0], own.center_2[1]
    nearest, least = -1, np.inf
    for row in range(cells.first_row, cells.end_row):
        for column in range(cells.first_column, cells.end_column):
            place = first + row * columns + column
            x, y = (column + 0.5) * stride, (row + 0.5) * stride
            distance = (x - center_x) * (x - center_x) + (y - center_y) * (y - center_y)
            if (
                owner[place] < 0
                and distance < least
                and (not must_be_inside or _is_inside(x, y, own.polygon_V2))
            ):
                nearest, least = place, distance
    return nearest, least


@_compiled
def _listed(
    owner: NDArray[np.int64], num_G: NDArray[np.int64], levels: _Levels
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the owned places as location_P3 and object_P, object after object."""
    next_G = np.zeros(len(num_G), np.int64)
    for g in range(1, len(num_G)):
        next_G[g] = next_G[g - 1] + num_G[g - 1]
    total = num_G.sum()
    location_P3, object_P = np.empty((total, 3), np.int64), np.empty(total, np.int64)
    for level in range(len(levels.hw_L2)):
        for place in range(levels.first_L1[level], levels.first_L1[level + 1]):
            g = owner[place]
            if g >= 0:
                nth = place - levels.first_L1[level]
                location_P3[next_G[g], 0] = level
                location_P3[next_G[g], 1] = nth // levels.hw_L2[level, 1]
                location_P3[next_G[g], 2] = nth % levels.hw_L2[level, 1]
                object_P[next_G[g]] = g
                next_G[g] += 1
    return location_P3, object_P


@_compiled
def _rays_of(
    location_P3: NDArray[np.int64],
    object_P: NDArray[np.int64],
    vertex_V2: NDArray[np.float32],
    offset_G1: NDArray[np.int64],
    stride_L: NDArray[np.int64],
    direction_R2: NDArray[np.float64],
) -> NDArray[np.float32]:
    ray_PR = np.empty((len(object_P), len(direction_R2)), np.float32)
    for p in range(len(object_P)):
        stride, g = stride_L[location_P3[p, 0]], object_P[p]
        _cast(
            (location_P3[p, 2] + 0.5) * stride,
            (location_P3[p, 1] + 0.5) * stride,
            vertex_V2[offset_G1[g] : offset_G1[g + 1]],
            direction_R2,
            ray_PR[p],
        )
    return ray_PR


@_compiled
def _cast(
    x: float,
    y: float,
    polygon: NDArray[np.float32],
    direction_R2: NDArray[np.float64],
    length_R: NDArray[np.float32],
) -> None:
    """Write the farthest crossing of each ray with the outline; `rays.cast_rays` in a loop."""
    num_rays = len(direction_R2)
    length_R[:] = MIN_LENGTH
    per_turn = num_rays / (2 * math.pi)
    last = len(polygon) - 1
    ax, ay = float(polygon[last, 0]) - x, float(polygon[last, 1]) - y
    angle_a = math.atan2(ay, ax) * per_turn
    for v in range(len(polygon)):
        bx, by = float(polygon[v, 0]) - x, float(polygon[v, 1]) - y
        angle_b = math.atan2(by, bx) * per_turn
        turn = angle_b - angle_a
        if turn > num_rays / 2:
            turn -= num_rays
        elif turn < -num_rays / 2:
            turn += num_rays
        low = min(angle_a, angle_a + turn) - _ANGLE_MARGIN
        high = max(angle_a, angle_a + turn) + _ANGLE_MARGIN
        first, count = math.ceil(low), math.floor(high) - math.ceil(low) + 1
        # An edge that touches the point, or nearly runs through it, may cross any ray.
        if abs(turn) > num_rays / 2 - 1 or (ax == 0 and ay == 0) or (bx == 0 and by == 0):
            first, count = 0, num_rays
        for nth in range(count):
            ray = (first + nth) % num_rays
            dx, dy = direction_R2[ray, 0], direction_R2[ray, 1]
            side_a, side_b = ay * dx - ax * dy, by * dx - bx * dy
            if (side_a > 0) != (side_b > 0):
                along_a, along_b = ax * dx + ay * dy, bx * dx + by * dy
                distance = (along_a * side_b - along_b * side_a) / (side_b - side_a)
                if distance >= 0 and distance > length_R[ray]:
                    length_R[ray] = distance
        ax, ay, angle_a = bx, by, angle_b
