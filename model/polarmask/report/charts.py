"""Charts as inline SVG: they follow the page's light and dark colours and need no script.

Series take the colour classes `c1`, `c2`, ... of the page's style sheet, in order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 12, 44
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_MOST_LABELS = 10
_MOST_DOTS = 40

Points = Sequence[tuple[float, float]]


def line_chart(
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    limits: tuple[float, float] = (1, 1),
    mark: float | None = None,
) -> Markup:
    """Draw lines through points (x, y), both axes from 0 to `limits`.

    Args:
        series: Points by name; of a few, each gets a dot.
        x_label: Below the chart.
        y_label: Left of it.
        limits: Ends of the axes, above 0.
        mark: Where on the x axis to draw a vertical line.
    """
    lines = [
        Markup('<polyline class="line c{}" points="{}"><title>{}</title></polyline>').format(
            index, " ".join(f"{_x(x / limits[0])},{_y(y / limits[1])}" for x, y in points), name
        )
        for index, (name, points) in enumerate(series.items(), start=1)
    ]
    dots = [
        Markup(
            '<circle class="dot c{}" cx="{}" cy="{}" r="3"><title>{}: {:g}, {:g}</title></circle>'
        ).format(index, _x(x / limits[0]), _y(y / limits[1]), name, x, y)
        for index, (name, points) in enumerate(series.items(), start=1)
        if len(points) <= _MOST_DOTS
        for x, y in points
    ]
    if mark is not None:
        place = _x(mark / limits[0])
        lines.append(
            Markup('<line class="mark" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
                place, _y(0), place, _y(1)
            )
        )
    ticks = _number_ticks(limits[0])
    return _figure([*_axes(ticks, limits[1], x_label, y_label), *lines, *dots], list(series))


def scatter_chart(
    points: Mapping[str, tuple[float, float]], *, x_label: str, y_label: str
) -> Markup:
    """Draw named points on two axes of the same length, with the diagonal of equal values."""
    limit = max([1.0, *(value for point in points.values() for value in point)])
    dots = [
        Markup(
            '<circle class="dot c1" cx="{}" cy="{}" r="4"><title>{}: {:g}, {:g}</title></circle>'
        ).format(_x(x / limit), _y(y / limit), name, x, y)
        for name, (x, y) in points.items()
    ]
    diagonal = Markup('<line class="grid diagonal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
        _x(0), _y(0), _x(1), _y(1)
    )
    return _figure([*_axes(_number_ticks(limit), limit, x_label, y_label), diagonal, *dots], [])


def bar_chart(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    stacked: bool = False,
) -> Markup:
    """Draw one group of bars per label; series are side by side or stacked."""
    columns = list(zip(*series.values(), strict=True))
    highest = max([sum(column) if stacked else max(column) for column in columns], default=0) or 1
    slot = 1 / max(1, len(labels))
    width = slot * 0.8 / (1 if stacked else len(series))
    bars = []
    for place, column in enumerate(columns):
        below = 0.0
        for index, (name, value) in enumerate(zip(series, column, strict=True)):
            left = (place + 0.1) * slot + (0 if stacked else index * width)
            bars.append(
                Markup(
                    '<rect class="bar c{}" x="{}" y="{}" width="{}" height="{}" rx="1.5">'
                    "<title>{}, {}: {:g}</title></rect>"
                ).format(
                    index + 1,
                    _x(left),
                    _y((below + value) / highest),
                    round(width * _PLOT_WIDTH, 1),
                    round(value / highest * _PLOT_HEIGHT, 1),
                    name,
                    labels[place],
                    value,
                )
            )
            below += value if stacked else 0
    every = math.ceil(len(labels) / _MOST_LABELS)
    ticks = [((place + 0.5) * slot, label) for place, label in enumerate(labels)][::every]
    return _figure([*_axes(ticks, highest, x_label, y_label), *bars], list(series))


def _x(share: float) -> float:
    return round(_LEFT + share * _PLOT_WIDTH, 1)


def _y(share: float) -> float:
    return round(_TOP + (1 - share) * _PLOT_HEIGHT, 1)


def _number_ticks(limit: float) -> list[tuple[float, str]]:
    """Return place (0 to 1) and text of about five round numbers from 0 to `limit`."""
    step = 10 ** math.floor(math.log10(limit))
    step *= next((factor for factor in (0.1, 0.2, 0.5, 1) if limit / (step * factor) <= 6), 2)
    count = math.floor(limit / step + 1e-9)
    return [(number * step / limit, f"{number * step:g}") for number in range(count + 1)]


def _axes(
    x_ticks: list[tuple[float, str]], y_limit: float, x_label: str, y_label: str
) -> Iterator[Markup]:
    for place, text in _number_ticks(y_limit):
        yield Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            _LEFT, _y(place), _WIDTH - _RIGHT, _y(place)
        )
        yield Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT - 8, _y(place) + 4, text
        )
    for place, text in x_ticks:
        yield Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            _x(place), _HEIGHT - _BOTTOM + 18, text
        )
    yield Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        _x(0.5), _HEIGHT - 6, x_label
    )
    yield Markup(
        '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format(_y(0.5), y_label)


def _figure(elements: list[Markup], names: list[str]) -> Markup:
    """Wrap elements; a legend is needed only for several series."""
    legend = Markup("").join(
        Markup('<span class="key"><i class="c{}"></i>{}</span>').format(index, name)
        for index, name in enumerate(names, start=1)
    )
    return Markup('<div class="chart">{}<svg viewBox="0 0 {} {}" role="img">{}</svg></div>').format(
        Markup('<div class="legend">{}</div>').format(legend) if len(names) > 1 else "",
        _WIDTH,
        _HEIGHT,
        Markup("").join(elements),
    )
