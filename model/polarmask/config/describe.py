"""What each setting means, from the docstrings of `config`."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import get_type_hints

from polarmask.config.overrides import settings_of, write_value
from polarmask.config.settings import RunConfig

_WIDTH = 100


@dataclass(frozen=True)
class Field:
    """A field of a dataclass, as the source has it."""

    name: str
    type: str
    default: str
    """Empty if there is none."""
    meaning: str
    """Its docstring, in one line."""


def fields_of(section: type) -> Iterator[Field]:
    """Yield the fields of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 for mypy
    following: list[ast.stmt | None] = [*definition.body[1:], None]
    for statement, after in zip(definition.body, following, strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = ast.unparse(statement.value) if statement.value else ""
            kind = ast.unparse(statement.annotation)
            yield Field(statement.target.id, kind, default, _docstring(after))


def _docstring(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""


def sections() -> dict[str, type]:
    """Return the dataclasses inside `RunConfig` by name."""
    hints = get_type_hints(RunConfig)
    return {n: hint for n, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}


def describe_settings(config: RunConfig) -> str:
    """Return every setting with its value and what it means, as text for a terminal."""
    values, lines = settings_of(config), []
    for name, section in {"": RunConfig, **sections()}.items():
        for each in fields_of(section):
            path = f"{name}.{each.name}".strip(".")
            if path in values:
                lines.append(f"{path}={write_value(values[path])}")
                lines += textwrap.wrap(
                    each.meaning, _WIDTH, initial_indent="    ", subsequent_indent="    "
                )
    return "\n".join(lines)
