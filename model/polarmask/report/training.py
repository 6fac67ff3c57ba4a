"""The training page: losses, learning rate, validation, speed, and how the run was set.

It shows the files of a run folder, so it can be written while the run is at work.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from polarmask.config.overrides import settings_of, write_value
from polarmask.config.presets import AUTO, preset, tiny
from polarmask.config.settings import RunConfig, from_dict
from polarmask.errors import ConfigError
from polarmask.report.charts import line_chart
from polarmask.report.page import Tile, fraction, render
from polarmask.training.run_folder import CONFIG, METRICS, VALIDATION, RunData

_POINTS = 200
"""At most, of a curve; each is the mean of the steps around it."""
_REFRESH_SECONDS = 30
_LOSSES = ("loss", "class", "quality", "ray", "box")
_AP_NAMES = {"mask_ap": "AP", "mask_ap50": "AP50", "mask_ap75": "AP75"}

Entries = Sequence[dict[str, float]]


def training_page(run: Path, *, title: str = "Training") -> str:
    """Return a self-contained HTML page about a run; browsers reload that of one at work.

    Args:
        run: Run folder.
        title: Headline.
    """
    config = from_dict(json.loads((run / CONFIG).read_text(encoding="utf-8")))
    used = RunData.read(run)
    entries, validation = _entries(run / METRICS), _entries(run / VALIDATION)
    step = int(entries[-1]["step"]) if entries else 0
    total = used.total_steps if used else step
    speed = _speed(entries, config.optim.batch_size)
    return render(
        "training.html",
        title=title,
        summary=_summary(step, total, entries, validation),
        provenance={"run_folder": run.resolve().name, "preset": config.name},
        data=used.splits if used else (),
        refresh_seconds=_REFRESH_SECONDS if step < total else 0,
        running=step < total,
        tiles=_tiles(config, step, total, entries, validation),
        losses=_chart(
            {name: _curve(entries, name) for name in _LOSSES if entries and name in entries[-1]},
            total,
            "loss",
        ),
        learning_rate=_chart({"learning rate": _curve(entries, "lr")}, total, ""),
        validation=_chart(
            {
                label: [(each["step"], each[name]) for each in validation if name in each]
                for name, label in _AP_NAMES.items()
            },
            total,
            "mask AP on val",
        )
        if validation
        else None,
        speed=_chart({"images/s": speed}, total, "images per second"),
        differences=_differences(config),
        base=_base(config),
        settings=[(path, write_value(value)) for path, value in settings_of(config).items()],
    )


def _entries(path: Path) -> list[dict[str, float]]:
    """Read a file of JSON lines; NaN in it are left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_numbers(json.loads(line)) for line in lines if line.endswith("}")]


def _numbers(entry: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if value is not None and value == value}


def _summary(step: int, total: int, entries: Entries, validation: Entries) -> str:
    parts = [f"{step:,} of {total:,} steps"]
    if entries:
        parts.append(f"loss {_last_loss(entries):.3f}")
    if best := _best(validation):
        parts.append(f"best mask AP on val {fraction(best['mask_ap'])}")
    return ", ".join(parts)


def _best(validation: Entries) -> dict[str, float] | None:
    """Return the validation whose weights are kept: of equal ones the later."""
    known = [entry for entry in validation if "mask_ap" in entry]
    return max(known, key=lambda entry: (entry["mask_ap"], entry["step"]), default=None)


def _tiles(
    config: RunConfig, step: int, total: int, entries: Entries, validation: Entries
) -> list[Tile]:
    tiles = [
        Tile("steps", f"{step:,}", f"of {total:,}" if step < total else "finished"),
        Tile("epochs", f"{config.optim.epochs * step / max(1, total):.3g}"),
    ]
    if entries:
        seconds = entries[-1]["seconds"]
        pace = seconds / step  # with validation, unlike the median speed
        batch_size = config.optim.batch_size
        speeds = [speed for _, speed in _speed(entries, batch_size)]
        left = f"{_duration(pace * (total - step))} left" if step < total else ""
        tiles += [
            Tile("loss", f"{_last_loss(entries):.3f}", "mean of the last twentieth"),
            Tile("time", _duration(seconds), left),
        ]
        if speeds:
            images_s = median(speeds)
            note = f"median; {batch_size / images_s:.2g} s a step"
            tiles.append(Tile("images/s", f"{images_s:.3g}", note))
    if best := _best(validation):
        tiles.append(
            Tile("best AP", fraction(best["mask_ap"]), f"on val, after step {best['step']:,.0f}")
        )
    return tiles


def _last_loss(entries: Entries) -> float:
    """Return the mean loss of the last twentieth of the steps."""
    return fmean(entry["loss"] for entry in entries[-max(1, len(entries) // 20) :])


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _curve(entries: Entries, name: str) -> list[tuple[float, float]]:
    """Return step and mean value of up to `_POINTS` groups of steps that follow each other."""
    size = max(1, ceil(len(entries) / _POINTS))
    groups = [entries[first : first + size] for first in range(0, len(entries), size)]
    return [
        (fmean(entry["step"] for entry in group), fmean(entry[name] for entry in group))
        for group in groups
    ]


def _speed(entries: Entries, batch_size: int) -> list[tuple[float, float]]:
    """Return step and images per second over groups of steps."""
    size = max(1, ceil(len(entries) / _POINTS), len(entries) // 40)
    marks = [{"step": 0.0, "seconds": 0.0}, *entries[size - 1 :: size]]
    return [
        (
            after["step"],
            batch_size * (after["step"] - before["step"]) / (after["seconds"] - before["seconds"]),
        )
        for before, after in pairwise(marks)
        if after["seconds"] > before["seconds"]
    ]


def _chart(series: dict[str, list[tuple[float, float]]], total: int, y_label: str) -> Markup:
    highest = max((y for points in series.values() for _, y in points), default=0)
    return line_chart(
        series, x_label="step", y_label=y_label, limits=(max(1, total), 1.05 * highest or 1)
    )


def _base(config: RunConfig) -> str:
    """Return the preset that a run is compared with; empty if it has none."""
    try:
        return tiny().name if config.name == AUTO else preset(config.name).name
    except ConfigError:
        return ""


def _differences(config: RunConfig) -> list[tuple[str, str, str]]:
    """Return setting, value in the preset, and value in the run where they differ."""
    base = _base(config)
    if not base:
        return []
    before = settings_of(preset(base))
    return [
        (path, write_value(before[path]), write_value(value))
        for path, value in settings_of(config).items()
        if value != before[path] and path != "name"
    ]
