"""What all pages share: the template environment, number formats, and embedded images."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from polarmask.data.summary import SplitSummary
from polarmask.inference.drawing import encode_jpeg, resized

_IMAGE_BYTES = 1_200_000
"""All images of a page together; base64 adds a third, and pages stay below 2 MB."""

_QUALITIES = (82, 70, 55, 40)

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
    """An image inside the page."""

    uri: str
    title: str
    note: str = ""


def make_figures(
    images: Iterable[tuple[NDArray[np.uint8], str, str]], *, expected: int
) -> list[Figure]:
    """Encode (image, title, note) so that `expected` of them fit a page."""
    budget = _IMAGE_BYTES // max(1, expected)
    return [Figure(_data_uri(image, budget), title, note) for image, title, note in images]


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
    provenance: Mapping[str, str],
    data: Sequence[SplitSummary],
    **values: object,
) -> str:
    """Fill a template.

    Args:
        template: Name of its file.
        title: Headline.
        provenance: Shown as name and value; empty values are left out.
        data: The splits that the page is about; each page shows what was left out of them.
        values: For the template.
    """
    known = {name: value for name, value in provenance.items() if value}
    filled = _ENVIRONMENT.get_template(template)
    return filled.render(title=title, provenance=known, data=data, **values)
