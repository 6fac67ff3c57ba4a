"""What settings dataclasses check, and plain data to one, with errors that name the field."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from polarmask.errors import ConfigError
from polarmask.system.did_you_mean import did_you_mean

Settings = TypeVar("Settings")

FORBID_UNKNOWN = ConfigDict(extra="forbid")
FINITE = ConfigDict(extra="forbid", allow_inf_nan=False)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def limit(highest: int, **values: int | None) -> None:
    """Bound what memory depends on: a model may come from anybody."""
    for name, value in values.items():
        require((value or 0) <= highest, f"{name} is above {highest:,}, the highest possible")


def read_settings(cls: type[Settings], plain: Mapping[str, Any], *, name: str = "") -> Settings:
    """Build a dataclass from plain data; its `__pydantic_config__` decides about unknown keys.

    Args:
        cls: A dataclass, maybe with further ones inside.
        plain: Values by field name.
        name: What the user calls these settings; comes before the field in errors.

    Raises:
        ConfigError: A value of the wrong type, or no such field.
    """
    try:
        return TypeAdapter(cls).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        location = first["loc"]
        where = ".".join(str(part) for part in (name, *location) if part != "") or "settings"
        if first["type"] == "unexpected_keyword_argument" and len(location) == 1:
            known = [each.name for each in fields(cls)]  # type: ignore[arg-type]  # a dataclass
            hint = did_you_mean(where, known)
            listed = ", ".join(sorted(known))
            raise ConfigError(f"{where} is not a setting{hint}; there are: {listed}") from error
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {reason} (got {reprlib.repr(first['input'])})") from error
