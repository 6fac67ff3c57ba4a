"""`section.field=value` strings, as `--set` takes them, applied to a run."""

import json
from dataclasses import asdict
from typing import Any

from polarmask.config.settings import RunConfig, from_dict
from polarmask.errors import ConfigError


def override(config: RunConfig, assignments: list[str]) -> RunConfig:
    """Apply `section.field=value` strings, typed by the dataclasses.

    Raises:
        ConfigError: No such field, or a value of the wrong type.
    """
    data = asdict(config)
    for assignment in assignments:
        path, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"{assignment!r} is no override; write for example optim.lr=0.005")
        *parents, leaf = path.strip().split(".")
        section: Any = data
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict) or leaf not in section:
            known = ", ".join(sorted(section if isinstance(section, dict) else data))
            raise ConfigError(f"{path} is not a setting; there are: {known}")
        section[leaf] = _parse(value)
    return from_dict(data)


def _parse(text: str) -> object:
    """Read JSON where it is JSON (numbers, lists, null), else keep the text."""
    try:
        value: object = json.loads(text)
        return value
    except (ValueError, RecursionError):
        return {"none": None, "None": None, "True": True, "False": False}.get(text, text)
