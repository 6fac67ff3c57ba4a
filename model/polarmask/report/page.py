"""What all pages share: the template environment, number formats, and embedded images."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isnan

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from polarmask.data.summary import SplitSummary
from polarmask.inference.drawing import encode_jpeg, resized

_IMAGE_BYTES = 1_200_000
"""All images of a page together; base64 adds a third, and pages stay below 2 MB."""

_QUALITIES = (82, 70, 55, 40)

INDEX_MARK = "<!-- index -->"
"""In `page.html`, where `index.add_page` links the index; other pages have no link."""

_ENVIRONMENT = Environment(
    loader=PackageLoader("polarmask.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["percent"] = lambda value: "-" if isnan(value) else f"{100 * value:.1f} %"
_ENVIRONMENT.filters["ap"] = lambda value: fraction(value)
_ENVIRONMENT.filters["number"] = lambda value: f"{value:,}"


def fraction(value: float) -> str:
    """Format a value in [0, 1]; NaN is a dash."""
    return "-" if isnan(value) else f"{value:.3f}"


@dataclass(frozen=True)
class Tile:
    """A number in a large font."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """An image inside the page, or several side by side."""

    uris: tuple[str, ...]
    title: str
    note: str = ""


def make_figures(
    images: Iterable[tuple[NDArray[np.uint8] | Sequence[NDArray[np.uint8]], str, str]],
    *,
    expected: int,
) -> list[Figure]:
    """Encode (image or images, title, note) so that `expected` figures fit a page."""
    budget = _IMAGE_BYTES // max(1, expected)
    figures = []
    for content, title, note in images:
        parts = [content] if isinstance(content, np.ndarray) else content
        uris = tuple(_data_uri(image, budget // len(parts)) for image in parts)
        figures.append(Figure(uris, title, note))
    return figures


def _data_uri(image: NDArray[np.uint8], budget: int) -> str:
    """Lower the quality, then the size, until the image fits."""
    for quality in _QUALITIES:
        encoded = encode_jpeg(image, quality=quality)
        if len(encoded) <= budget:
            return "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")
    return _data_uri(resized(image, max(1, int(max(image.shape[:2]) * 0.7))), budget)


def render(
    template: str,
    *,
    title: str,
    summary: str = "",
    provenance: Mapping[str, str],
    data: Sequence[SplitSummary],
    refresh_seconds: int = 0,
    **values: object,
) -> str:
    """Fill a template.

    Args:
        template: Name of its file.
        title: Headline.
        summary: The page in one line, for the index.
        provenance: Shown as name and value; empty values are left out.
        data: The splits that the page is about; each page shows what was left out of them.
        refresh_seconds: How often browsers load the page again; 0 for never.
        values: For the template.
    """
    filled = _ENVIRONMENT.get_template(template)
    return filled.render(
        title=title,
        summary=summary,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        provenance={name: value for name, value in provenance.items() if value},
        data=data,
        refresh_seconds=refresh_seconds,
        **values,
    )
