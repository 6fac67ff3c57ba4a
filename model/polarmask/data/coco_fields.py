"""Single values of COCO JSON, read as the programs that write them mean them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

_INTEGER_TEXT = re.compile(r"0|-?[1-9][0-9]{0,18}")
_EXACT_FLOAT = 2**53
"""Below this every integer has a float of its own."""

_FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_LONGEST_QUOTE = 60


def read_integer(value: object) -> int | None:
    """Return an integer of 64 bits; also from 1.0 (pandas) and "1" (CSV), None from the rest."""
    if isinstance(value, float):
        value = int(value) if value.is_integer() and abs(value) < _EXACT_FLOAT else None
    elif isinstance(value, str):
        value = int(value) if _INTEGER_TEXT.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if -(2**63) <= value < 2**63 else None


def read_integers(entry: object, keys: Iterable[str]) -> dict[str, int] | str:
    """Return the integers of an entry by key, or a text that names the first that is none."""
    if not isinstance(entry, Mapping):
        return f"{quote(entry)} is no JSON object"
    found = {}
    for key in keys:
        value = read_integer(entry.get(key))
        if value is None:
            has = f"is {quote(entry[key])}" if key in entry else "is missing"
            return f"{key} {has}; give an integer of at most 64 bits"
        found[key] = value
    return found


def read_flag(value: object) -> bool | None:
    """Return 0, 1, false, true, also as text, as a bool; absent or null is False, the rest None."""
    return False if value is None else _FLAGS.get(str(value).strip().lower())


def read_file_name(value: object) -> str | None:
    """Return a path with slashes, also from Windows' backslashes; None from what is no text."""
    if not isinstance(value, str):
        return None
    return str(PurePosixPath(value.replace("\\", "/"))) if value else ""


def read_name(value: object) -> str | None:
    """Return a text that can be written as UTF-8: halves of characters become U+FFFD."""
    return _HALF_CHARACTER.sub("\ufffd", value) if isinstance(value, str) else None


def position_or_id(entry: object, position: int) -> str:
    """Name an entry of a list in a message, also one without an id."""
    own = read_integer(entry.get("id")) if isinstance(entry, Mapping) else None
    return f"at position {position}" if own is None else str(own)


def quote(value: Any) -> str:  # noqa: ANN401  # whatever the file holds
    """Return a value as one short line of text."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
