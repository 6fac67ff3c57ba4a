"""Models of a registry as text and as plain data: a list, one record, the difference of two."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from polarmask.config.overrides import write_value
from polarmask.system.tables import aligned
from polarmask_components.registry.history import KnownModel, minute

Differences = dict[str, dict[str, tuple[Any, Any]]]
"""Two values each, by group (data, code, categories, metrics, settings) and name."""

_HEAD = ("version", "created", "data", "mask AP", "state")
_COMMIT_DIGITS = 7


def list_text(models: Sequence[KnownModel]) -> str:
    """Return a line for each model."""
    return aligned([_HEAD, *map(_row, models)])


def _row(model: KnownModel) -> tuple[str, ...]:
    facts = model.facts
    data = (facts.data_commit[:_COMMIT_DIGITS] or facts.data_hash) if facts else ""
    state = f"{model.state}: {model.note}" if model.note else model.state
    return (model.version, minute(model.created), data, _number(_mask_ap(model)), state)


def _mask_ap(model: KnownModel) -> float | None:
    return None if model.facts is None else model.facts.metrics.get("mask_ap")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def list_plain(models: Sequence[KnownModel]) -> list[dict[str, Any]]:
    """Return what `list_text` shows, in full, as plain data."""
    return [
        {
            "version": each.version,
            "created": each.created,
            "data_commit": each.facts.data_commit if each.facts else None,
            "data_hash": each.facts.data_hash if each.facts else None,
            "mask_ap": _mask_ap(each),
            "state": each.state,
            "note": each.note,
        }
        for each in models
    ]


def model_text(model: KnownModel, *, archive: str) -> str:
    """Return all that is known about a model.

    Args:
        model: The model.
        archive: Where its archive is; empty for none.
    """
    rows = [
        ("version", model.version),
        ("state", f"{model.state}: {model.note}"),
        ("created", model.created),
        *(
            ("promoted", each.time + (f", after {each.previous}" if each.previous else ""))
            for each in model.promotions
        ),
    ]
    if model.record is not None:
        megabytes = model.record.archive_size / 1e6
        rows.append(("archive", f"{archive}, {megabytes:.1f} MB"))
        rows.append(("sha256", model.record.archive_sha256))
    if model.facts is None:
        return aligned(rows)
    groups = _groups(model)
    rows += [(f"{name}.{key}", _written(name, key, value)) for name in ("data", "code")
             for key, value in groups[name].items()]  # fmt: skip
    rows.append(("categories", ", ".join(groups["categories"])))
    if fastest := model.facts.engines.get("fastest_first"):
        rows.append(("engines", ", ".join(fastest)))
    parts = [aligned(rows)]
    for name in ("metrics", "settings"):
        lines = [(f"  {key}", _written(name, key, value)) for key, value in groups[name].items()]
        parts.append(f"{name}\n{aligned(lines)}" if lines else f"{name}: none")
    return "\n\n".join(parts)


def model_plain(model: KnownModel, *, archive: str) -> dict[str, Any]:
    """Return the same as plain data."""
    plain = asdict(model)
    del plain["record"]
    record = model.record
    plain["archive"] = record and {
        "uri": archive,
        "sha256": record.archive_sha256,
        "bytes": record.archive_size,
    }
    return plain


def differences(first: KnownModel, second: KnownModel) -> Differences:
    """Return what differs between two models, by group and name; None stands for no value."""
    ours, theirs = _groups(first), _groups(second)
    return {
        group: {
            name: (ours[group].get(name), theirs[group].get(name))
            for name in {**ours[group], **theirs[group]}
            if ours[group].get(name) != theirs[group].get(name)
        }
        for group in ours
    }


def differences_text(first: KnownModel, second: KnownModel) -> str:
    """Return what differs between two models, a line each."""
    found = differences(first, second)
    rows = [("", first.version, second.version, ""), ("state", first.state, second.state, "")]
    for group, values in found.items():
        rows += [
            (
                f"{group}.{name}",
                _written(group, name, one),
                _written(group, name, other),
                _change(group, name, one, other),
            )
            for name, (one, other) in values.items()
        ]
    equal = [group for group, values in found.items() if not values]
    return aligned(rows) + (f"\nequal: {', '.join(equal)}" if equal else "")


def _change(group: str, name: str, one: Any, other: Any) -> str:  # noqa: ANN401  # numbers, or settings of any type
    if group != "metrics" or one is None or other is None:
        return ""
    return ("+" if other > one else "") + _written(group, name, other - one)


def _groups(model: KnownModel) -> dict[str, dict[str, Any]]:
    """Return what is known about a model by group and name."""
    facts = model.facts
    if facts is None:
        return {name: {} for name in ("data", "code", "categories", "metrics", "settings")}
    return {
        "data": {"commit": facts.data_commit, "hash": facts.data_hash},
        "code": {"commit": facts.code_commit, "version": facts.code_version},
        "categories": {each["name"]: each["id"] for each in facts.categories},
        "metrics": dict(sorted(facts.metrics.items())),
        "settings": dict(_flat(facts.config)),
    }


def _flat(plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield settings as `section.field`. They may be those of another release."""
    for name, value in plain.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _written(group: str, name: str, value: Any) -> str:  # noqa: ANN401  # a setting of any type
    if value is None:
        return "-"
    if group == "metrics" and name.startswith("mask_"):  # in [0, 1]
        return f"{value:.4f}"
    is_count = group == "metrics" and float(value).is_integer()
    return f"{value:.0f}" if is_count else write_value(value)
