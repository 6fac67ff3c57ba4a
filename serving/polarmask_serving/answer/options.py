"""What a client may ask of an answer: one table of options, read from headers, forms and JSON."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from polarmask_serving.errors import BadOptionError

MAX_IMAGES = 8
"""Images in one JSON request."""

TRIAL_HEADER = "x-polarmask-trial"
"""Set by proxies alone, on a request that a candidate gets a copy of: both servers write what they
found into their logs."""

BODY_TYPE_HEADER = "x-content-type"
"""The client's Content-Type: the proxy hands every body to TorchServe as mere bytes."""

Mask = Literal["polygon", "rle", "none"]
Tile = Literal["auto", "none"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the client wants to see of an answer."""

    score_threshold: float | None = None
    """Instances below this score are left out, in [0, 1]; None leaves it to the model."""
    max_instances: int | None = None
    """At most so many instances, best first; None leaves it to the model."""
    categories: tuple[int, ...] | None = None
    """Ids of the categories to show; None shows all."""
    mask: Mask = "polygon"
    """Form of the masks: vertices, COCO compressed RLE, or none."""
    return_rays: bool = False
    """Show centres and ray lengths, too."""
    tile: Tile = "auto"
    """`auto` cuts images much larger than the training images into tiles; `none` shrinks them."""


@dataclass(frozen=True)
class Option:
    """One option on the wire."""

    read: Callable[[object], Any]
    """Turns a JSON value, or the text of a header or form field, into a value; ValueError."""
    must_be: str
    schema: Mapping[str, Any]
    """JSON schema."""
    description: str


def _number(value: object) -> float:
    if isinstance(value, str) and re.fullmatch(r"[-+.0-9eE]{1,40}", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def _score(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= 1:  # no number at all included
        raise ValueError
    return number


def _count(value: object) -> int:
    number = _number(value)
    if not 1 <= number <= _MOST_INSTANCES or number != int(number):
        raise ValueError
    return int(number)


def _mask(value: object) -> Mask:
    if value not in get_args(Mask):
        raise ValueError
    return cast(Mask, value)


def _tile(value: object) -> Tile:
    if value not in get_args(Tile):
        raise ValueError
    return cast(Tile, value)


def _flag(value: object) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if not isinstance(value, bool):
        raise ValueError
    return value


def _category_list(value: object) -> tuple[int | str, ...]:
    if isinstance(value, str):
        in_json = value.lstrip().startswith("[")
        value = json.loads(value) if in_json else [part.strip() for part in value.split(",")]
    if not isinstance(value, list) or not value:
        raise ValueError
    if any(isinstance(each, bool) or not isinstance(each, int | str) for each in value):
        raise ValueError
    return tuple(value)


_MOST_INSTANCES = 1_000_000

OPTIONS: Mapping[str, Option] = {
    "score_threshold": Option(
        _score,
        "a number in [0, 1]",
        {"type": "number", "minimum": 0, "maximum": 1},
        "Leave out instances below this score. The default is the model's own, which had the best "
        "F1 on the val split; answers name it.",
    ),
    "max_instances": Option(
        _count,
        "a whole number, at least 1",
        {"type": "integer", "minimum": 1, "maximum": _MOST_INSTANCES},
        "Show at most so many instances, the best ones. The default is all that the model found: "
        "at most its own limit in an image, or in each tile of it.",
    ),
    "categories": Option(
        _category_list,
        "names or ids of categories, such as nucleus,7",
        {
            "type": "array",
            "minItems": 1,
            "items": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        },
        "Show only these categories, by name or id. As text: separated by commas, or a JSON list.",
    ),
    "mask": Option(
        _mask,
        f"one of {', '.join(get_args(Mask))}",
        {"type": "string", "enum": list(get_args(Mask)), "default": "polygon"},
        "Form of the masks: vertices, COCO compressed RLE, or none.",
    ),
    "return_rays": Option(
        _flag,
        "true or false",
        {"type": "boolean", "default": False},
        "Show each instance's centre and ray lengths, too.",
    ),
    "tile": Option(
        _tile,
        f"one of {', '.join(get_args(Tile))}",
        {"type": "string", "enum": list(get_args(Tile)), "default": "auto"},
        "Cut images that are much larger than the training images into overlapping tiles (auto), "
        "or shrink them (none).",
    ),
}


def header_of(option: str) -> str:
    """Return the HTTP header that sets an option."""
    return "X-" + option.replace("_", "-").title()


_BY_HEADER = {header_of(name).lower(): name for name in OPTIONS}


def options_in_headers(headers: Mapping[str, object]) -> dict[str, object]:
    """Pick the options out of HTTP headers; values that aren't text are another thing."""
    return {
        _BY_HEADER[name.lower()]: value
        for name, value in headers.items()
        if name.lower() in _BY_HEADER and isinstance(value, str)
    }


def read_options(sources: Sequence[Mapping[str, object]], categories: Mapping[int, str]) -> Options:
    """Check options given as text, bytes or JSON values.

    Args:
        sources: Values by name. The last source wins; what it overrides has to make sense, too.
        categories: The model's, names by id.

    Raises:
        BadOptionError: An option or a category is unknown, or a value makes no sense.
    """
    settings: dict[str, Any] = {}
    for name, value in (pair for source in sources for pair in source.items()):
        if name not in OPTIONS:
            raise BadOptionError(f"unknown option {name[:50]!r}; there are: {', '.join(OPTIONS)}")
        if isinstance(value, bytes | bytearray):
            value = value.decode("utf-8", "replace")
        try:
            settings[name] = OPTIONS[name].read(value)
        except (ValueError, OverflowError, RecursionError) as error:
            raise BadOptionError(
                f"{name} is {str(value)[:50]!r}: must be {OPTIONS[name].must_be}"
            ) from error
        if name == "categories":
            settings[name] = _ids(settings[name], categories)
    return Options(**settings)


def _ids(wanted: tuple[int | str, ...], categories: Mapping[int, str]) -> tuple[int, ...]:
    """Find categories by id or name; text is a name first and an id second."""
    by_text = {str(number): number for number in categories}
    by_text |= {name: number for number, name in categories.items()}
    found: list[int] = []
    for each in wanted:
        number = by_text.get(each) if isinstance(each, str) else each
        if number is None or number not in categories:
            known = ", ".join(
                f"{name} ({number})" for number, name in list(categories.items())[:20]
            )
            raise BadOptionError(
                f"categories has {str(each)[:50]!r}, which is none; the model knows {known}"
            )
        found.append(number)
    return tuple(dict.fromkeys(found))
