"""Charts (SVG) of cost against size of input, and a table row for each."""

from pathlib import Path

import numpy as np
from harness import Result

CHARTS = Path(__file__).parents[1] / "docs" / "images"
_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 440, 260, 56, 30, 24, 44
_OURS, _OTHER, _GREY = "#3b82d0", "#d9822b", "#808080"  # readable on white and on black


def growth(what, label_of_x, points, unit="ms"):
    """Return the table row: the last cost beside the one before, scaled to the same input."""
    (before, low), (last, high) = points[-2:]
    factor = last / before
    name = f"{what}, {label_of_x}: {last:,} (reference: time of {before:,}, times {factor:.3g})"
    return Result(name, high, low * factor, unit)


def draw(name, label_of_x, points, unit="ms", other=None):
    """Write docs/images/NAME.svg: cost against a quantity, both axes from 0.

    The grey line shows cost in proportion to the quantity, up to the last point. `other` is a
    second series: its name and points.
    """
    lines = [(_OURS, points), *([(_OTHER, other[1])] if other else [])]
    most_x = max(x for _, own in lines for x, _ in own)
    most_y = 1.08 * max(y for _, own in lines for _, y in own)

    def at(x, y):
        wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + x / most_x * wide, _TOP + (1 - y / most_y) * high

    parts = []
    for y in _ticks(most_y):
        x_of, y_of = at(0, y)
        parts.append(
            f'<path d="M{x_of:.1f},{y_of:.1f}H{_WIDTH - _RIGHT}" stroke="{_GREY}" '
            f'stroke-opacity=".25"/><text x="{x_of - 6:.1f}" y="{y_of + 4:.1f}" '
            f'text-anchor="end">{_number(y)}</text>'
        )
    for x in _ticks(most_x):
        x_of, y_of = at(x, 0)
        parts.append(
            f'<path d="M{x_of:.1f},{y_of:.1f}v4" stroke="{_GREY}"/>'
            f'<text x="{x_of:.1f}" y="{y_of + 17:.1f}" text-anchor="middle">{_number(x)}</text>'
        )
    left, floor = at(0, 0)
    parts.append(
        f'<path d="M{left},{_TOP}V{floor:.1f}H{_WIDTH - _RIGHT}" fill="none" stroke="{_GREY}"/>'
    )
    for colour, own in lines:
        corners = [at(x, y) for x, y in own]
        end_x, end_y = corners[-1]
        parts.append(
            f'<path d="M{left},{floor:.1f}L{end_x:.1f},{end_y:.1f}" stroke="{_GREY}" '
            'stroke-dasharray="4 4"/>'
        )
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in corners]
    names = [("ours", _OURS)] if other else []
    names += [(other[0], _OTHER)] if other else []
    parts += [
        f'<text x="{_LEFT + 60 + 60 * number}" y="16" fill="{colour}">{who}</text>'
        for number, (who, colour) in enumerate(names)
    ]
    CHARTS.mkdir(exist_ok=True)
    (CHARTS / f"{name}.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="11" fill="{_GREY}">{"".join(parts)}'
        f'<text x="{_LEFT}" y="16" text-anchor="middle">{unit}</text>'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{label_of_x}</text></svg>\n",
        encoding="utf-8",
    )


def _ticks(most):
    """Return 0 and some round numbers up to `most`."""
    rough = most / 6
    power = 10 ** np.floor(np.log10(rough))
    step = power * next(each for each in (1, 2, 2.5, 5, 10) if each * power >= rough * 0.99)
    return [number * step for number in range(int(most / step + 1e-9) + 1)]


def _number(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
