"""Cron expressions: five fields, checked, to the six that Kubeflow needs (seconds first).

Kubeflow misreads five fields without an error.
"""

import re
from dataclasses import dataclass
from datetime import date, timedelta

from polarmask_pipelines.errors import CronError


@dataclass(frozen=True)
class _Field:
    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()
    """Names of the values, from the lowest on."""


_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)
_PART = re.compile(r"(\*|\w+(?:-\w+)?)(?:/(\d+))?", re.ASCII)
_DAYS = 5 * 366
"""Kubeflow looks so far ahead for the next day; without one it starts no run, and says nothing."""


def with_seconds(expression: str) -> str:
    """Return a five-field cron expression with a sixth field for Kubeflow: second 0.

    Raises:
        CronError: It has not five fields, a value is out of range, or the day never comes.
    """
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        raise CronError(
            f"cron {expression!r} has {len(fields)} fields; write five: minute, hour, day of "
            "month, month, day of week, as in '0 2 * * *' for every day at two"
        )
    values = [_values(text, field) for text, field in zip(fields, _FIELDS, strict=True)]
    if not any(
        _matches(date.today() + timedelta(days=ahead), fields, values) for ahead in range(_DAYS)
    ):
        raise CronError(f"cron {expression!r}: no day of the next five years is such a day")
    return " ".join(["0", *fields])


def _matches(day: date, fields: list[str], values: list[set[int]]) -> bool:
    """Return whether runs start on a day.

    Both day of month and day of week have to match if one of them begins with a star, also in
    part or with a step; otherwise one of them is enough.
    """
    _, _, days, months, weekdays = values
    matches = (day.day in days, (day.weekday() + 1) % 7 in weekdays)
    has_star = any(
        part.startswith("*") for text in (fields[2], fields[4]) for part in text.split(",")
    )
    return day.month in months and (all(matches) if has_star else any(matches))


def _values(text: str, field: _Field) -> set[int]:
    """Return the values that match a field."""
    values: set[int] = set()
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if not found:
            raise CronError(
                f"cron: {field.name} {text!r} can't be read; write *, 5, 1-5, */15, or several "
                "of these with commas"
            )
        span, step = found[1], int(found[2] or 1)
        if span == "*":
            first, last = field.lowest, field.highest
        else:
            ends = [_value(end, field) for end in span.split("-")]
            first, last = ends[0], ends[-1]
            if found[2] and len(ends) == 1:
                last = field.highest
        if first > last or step < 1:
            raise CronError(f"cron: {field.name} {part!r} is an empty range")
        values.update(range(first, last + 1, step))
    return values


def _value(text: str, field: _Field) -> int:
    if text.upper() in field.names:
        return field.lowest + field.names.index(text.upper())
    if not text.isdecimal() or not field.lowest <= int(text) <= field.highest:
        raise CronError(
            f"cron: {field.name} is {text!r}; it goes from {field.lowest} to {field.highest}"
            + (f" or {field.names[0]} to {field.names[-1]}" if field.names else "")
        )
    return int(text)
