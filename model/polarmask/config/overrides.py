"""`section.field=value` strings, as `--set` takes them, applied to a run."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from polarmask.config.settings import RunConfig, from_dict, to_dict
from polarmask.errors import ConfigError
from polarmask.system.did_you_mean import did_you_mean


def override(config: RunConfig, assignments: list[str]) -> RunConfig:
    """Apply `section.field=value` strings, typed by the dataclasses.

    Raises:
        ConfigError: No such field, or a value of the wrong type.
    """
    values = {}
    for assignment in assignments:
        path, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"{assignment!r} is no override; write for example optim.lr=0.005")
        values[path.strip()] = _parse(value)
    return change(config, values)


def change(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Apply values by `section.field`; `field` will do where no other section has it.

    Raises:
        ConfigError: No such field, or a value of the wrong type.
    """
    data = asdict(config)
    for path, value in values.items():
        *parents, leaf = _full_name(path, data).split(".")
        section: Any = data
        for parent in parents:
            section = section[parent]
        section[leaf] = value
    return from_dict(data)


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return the plain value of every setting by `section.field`."""
    return dict(_flat(to_dict(config)))


def differences(config: RunConfig, base: RunConfig) -> list[str]:
    """Return what `override` turns the base into the config with; their names are not compared."""
    before = settings_of(base)
    return [
        f"{path}={write_value(value)}"
        for path, value in settings_of(config).items()
        if value != before[path] and path != "name"
    ]


def write_value(value: object) -> str:
    """Return a plain value as `--set` takes it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _flat(plain: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in plain.items():
        flat += (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
        )
    return flat


def _full_name(path: str, data: Mapping[str, Any]) -> str:
    known = [name for name, _ in _flat(data)]
    fitting = [name for name in known if path in (name, name.rpartition(".")[2])]
    if path in known:
        return path
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"{path} is in several sections; there are: {', '.join(fitting)}")
    section = path.rpartition(".")[0]
    fields = data.get(section)
    if not isinstance(fields, Mapping):  # a setting is no section
        fields = {}
    raise ConfigError(
        f"{path} is not a setting{did_you_mean(path, [f'{section}.{n}' for n in fields] or known)}"
        f"; there are: {', '.join(sorted(fields or data))}; `polarmask settings` explains all"
    )


def _parse(text: str) -> object:
    """Read JSON where it is JSON (numbers, lists, null), else keep the text."""
    try:
        value: object = json.loads(text)
        return value
    except (ValueError, RecursionError):
        return {"none": None, "None": None, "True": True, "False": False}.get(text, text)
