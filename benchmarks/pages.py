"""Write the tables of speed.md, accuracy.md and model/README.md from the JSON files in this folder.

    .venv/bin/python benchmarks/pages.py

Everything between `<!-- begin NAME -->` and `<!-- end NAME -->` on those pages is generated; a test
compares it with the JSON files. The benchmarks call `write_pages` after they have written theirs.
"""

import json
import re
from pathlib import Path
from statistics import mean

from harness import Result, markdown, table

from polarmask.system.files import write_text

HERE = Path(__file__).parent
RESULTS, SEEDS, SOAK = HERE / "results.json", HERE / "seeds", HERE / "soak.json"
BIT_DEPTHS, PEERS = HERE / "bit_depths.json", HERE / "peers.json"
REFERENCE = HERE.parent / "docs" / "reference"
MODEL = HERE.parent / "model" / "README.md"
FOR_MODEL = (
    "compute an image's labels",
    "decode 95,000 candidates, default",
    "COCO mask AP, 5,000",
)
"""Beginnings of the rows of results.json that model/README.md shows."""


def write_pages():
    """Update every page from the JSON files."""
    for page, text in pages().items():
        write_text(page, text)


def pages():
    """Return the text of each page, by path, with the generated parts brought up to date."""
    speed, accuracy = REFERENCE / "speed.md", REFERENCE / "accuracy.md"
    ours, original = (_read(SEEDS / f"{name}.json") for name in ("tiny", "tiny-original"))
    results = _read(RESULTS)
    numbers = _model_numbers(results, ours, original)
    return {
        MODEL: _fill(MODEL.read_text(encoding="utf-8"), numbers=numbers),
        speed: _fill(speed.read_text(encoding="utf-8"), benchmarks=_speed(results)),
        accuracy: _fill(
            accuracy.read_text(encoding="utf-8"),
            seeds=[*seed_table(ours), "", _source(ours)],
            original=_comparison(ours, original),
            bits=bit_depth_table(_read(BIT_DEPTHS)),
            peers=peer_table(_read(PEERS)) if PEERS.exists() else ["Not measured yet."],
            soak=_soak(_read(SOAK)),
        ),
    }


def seed_table(record):
    """Return a Markdown table with a row for each seed."""
    rows = [
        (
            str(run["seed"]),
            *(f"{run[name]:.3f}" for name in ("mask_ap", "mask_ap50", "mask_ap75")),
            f"{run['train_seconds']:.0f}",
        )
        for run in record["runs"]
    ]
    return markdown(("seed", "mask AP", "AP50", "AP75", "training, s"), rows)


def bit_depth_table(record):
    """Return a Markdown table with a row for each setting, and where it comes from."""
    held = {(row["intensity"], row["bits"]): row["mask_ap"] for row in record["rows"]}
    bits = sorted({row["bits"] for row in record["rows"]})
    fitting = {number: "bit_depth" if ("bit_depth", number) in held else "as_is" for number in bits}
    rows = [
        ("fitting the bits", *(f"{held[fitting[n], n]:.4f} (`{fitting[n]}`)" for n in bits)),
        ("`percentile`", *(f"{held['percentile', n]:.4f}" for n in bits)),
    ]
    lines = markdown(("`input.intensity`", *(f"{n} bits" for n in bits)), rows)
    command = ".venv/bin/python benchmarks/bit_depths.py --model runs/first/model"
    source = f"`{command}`, {record['date']}, {record['machine']}."
    return [*lines, "", f"Model: {record['model']}.", source]


def peer_table(record):
    """Return a Markdown table with a row for each network and budget, and where it comes from."""
    rows = [
        (
            f"`{row['name']}`",
            f"{row['seconds']:.0f}",
            f"{row['steps']:,} x {row['batch']}",
            *(f"{row[key]:.3f}" for key in ("mask_ap", "mask_ap50", "mask_ap75")),
            *(f"{value:.3f}" for value in row["accuracy"]),
            f"{row['milliseconds']:.0f}",
        )
        for row in record["rows"]
    ]
    accuracy = ("accuracy .5", ".6", ".7", ".8", ".9")
    head = ("network", "training, CPU s", "steps x images", "mask AP", "AP50", "AP75")
    versions = {key: row for one in record["rows"] for key, row in one["versions"].items()}
    return [
        *markdown((*head, *accuracy, "prediction, ms"), rows),
        "",
        f"`{record['command']}`, {record['date']}, {record['machine']}. Versions: "
        f"{', '.join(' '.join(pair) for pair in sorted(versions.items()))}.",
    ]


def _read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def _fill(text, **parts):
    """Replace the text between the marks of each part."""
    for name, lines in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        body = "\n".join((begin, "", *lines, "", end))
        text, count = re.subn(f"{begin}.*?{end}", lambda _, new=body: new, text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"a page needs exactly one {begin} ... {end}, not {count}")
    return text


def _results(held):
    fields = ("name", "fast", "reference", "unit", "goal")
    return [Result(**{key: line[key] for key in fields}) for line in held["results"].values()]


def _model_numbers(held, *seeds):
    accuracy, speed = (
        "[accuracy](../docs/reference/accuracy.md)",
        "[speed](../docs/reference/speed.md)",
    )
    rows = [
        (
            f"mask AP on the bundled nuclei, preset `{record['preset']}` as of {record['date']}, "
            f"mean of {len(record['runs'])} seeds",
            f"{mean(run['mask_ap'] for run in record['runs']):.3f}",
            accuracy,
        )
        for record in seeds
    ]
    shown = [one for one in _results(held) if one.name.startswith(FOR_MODEL)]
    rows += [(one.name, f"{one.fast:.3g} {one.unit}", speed) for one in shown]
    return markdown(("measure", "value", "source"), rows)


def _speed(held):
    results = _results(held)
    dates = sorted({line["date"] for line in held["results"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return [*table(results), "", f"`{held['command']}`, {when}, {held['machine']}."]


def _source(record):
    preset = "" if record["preset"] == "tiny" else f" --preset {record['preset']}"
    command = f".venv/bin/python benchmarks/seeds.py{preset}"
    return f"`{command}`, {record['date']}, {record['machine']}, {record['processes']} processes."


def _comparison(*records):
    rows = []
    for record in records:
        ap, ap50 = ([run[name] for run in record["runs"]] for name in ("mask_ap", "mask_ap50"))
        by_seed = ", ".join(f"{value:.3f}" for value in ap)
        rows.append((f"`{record['preset']}`", by_seed, f"{mean(ap):.3f}", f"{mean(ap50):.3f}"))
    header = ("preset", "mask AP by seed", "mean", "mean AP50")
    return [*markdown(header, rows), "", _source(records[-1])]


def _soak(soak):
    growth = soak["memory_growth_percent"]
    rows = [
        (name, f"{soak['memory_mb_at_first'][name]}", f"{size}", f"{growth[name]}")
        for name, size in soak["memory_mb_at_last"].items()
    ]
    rows.append(("all", "", "", f"{growth['all']}"))
    requests = sum(soak["answers"].values())
    return [
        f"{soak['minutes']:.0f} minutes at {soak['requests_per_second']} requests/s (capacity: "
        f"{soak['capacity_images_per_second']} images/s): {requests:,} requests, "
        f"{soak['errors']} errors, latency p50 {soak['p50_ms']} ms, p99 {soak['p99_ms']} ms.",
        "",
        *markdown(("process", "MB at first", "MB at last", "growth, %"), rows),
        "",
        f"`.venv/bin/python benchmarks/serving.py --soak {soak['minutes']:.0f}`, {soak['date']}, "
        f"{soak['machine']}.",
    ]


if __name__ == "__main__":
    write_pages()
