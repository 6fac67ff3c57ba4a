"""Slow, obvious polar geometry, one point and one edge at a time: what the fast code must equal."""

import math


def ray_length(point, polygon, angle):
    """Return the farthest crossing of one ray with a polygon's edges, or None."""
    direction_x, direction_y = math.cos(angle), math.sin(angle)
    farthest = None
    for (ax, ay), (bx, by) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        # Solve point + t * direction = a + u * (b - a) for t and u.
        edge_x, edge_y = bx - ax, by - ay
        determinant = direction_y * edge_x - direction_x * edge_y
        if determinant == 0:
            continue
        to_x, to_y = ax - point[0], ay - point[1]
        t = (to_y * edge_x - to_x * edge_y) / determinant
        u = (to_y * direction_x - to_x * direction_y) / determinant
        if t >= 0 and 0 <= u <= 1 and (farthest is None or t > farthest):
            farthest = t
    return farthest


def contains(point, polygon):
    """Count crossings to the right, one edge at a time."""
    inside = False
    for (ax, ay), (bx, by) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (ay > point[1]) != (by > point[1]):
            inside ^= point[0] < ax + (point[1] - ay) / (by - ay) * (bx - ax)
    return inside


def decode_one_by_one(center, lengths):
    """Return the ray ends of one centre."""
    step = 2 * math.pi / len(lengths)
    return [
        (center[0] + length * math.cos(k * step), center[1] + length * math.sin(k * step))
        for k, length in enumerate(lengths)
    ]
