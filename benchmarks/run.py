"""Run the benchmarks, each in a process of its own, and write what they measured.

    .venv/bin/python benchmarks/run.py            all of them: results.json and README's table
    .venv/bin/python benchmarks/run.py rays feed  these; the other lines stay as they are
    .venv/bin/python benchmarks/run.py --quick    minutes; fails on wrong results, writes nothing

What a benchmark measured is written when it ends; the lines of one that fails stay as they were.
Whatever the times are, the exit status tells only of wrong results and crashes.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from frame import Result, machine, table

from polarmask.system.files import write_text

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- make bench -->\n", "<!-- end of make bench -->\n"


def modules():
    """Return the benchmarks by name: the modules here that have a `run`."""
    return {
        path.stem: path
        for path in sorted(HERE.glob("*.py"))
        if path.name != "frame.py" and "\ndef run(" in path.read_text(encoding="utf-8")
    }


def measure(path, *, quick):
    """Run one benchmark; return its results, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, str(path), "--json", str(out), *(["--quick"] if quick else [])]
        print(f"== {path.stem}", flush=True)
        started, before = time.monotonic(), cpu_seconds()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        took, cpu = time.monotonic() - started, cpu_seconds() - before
        print(f"   {path.stem} took {took:.0f} s, {cpu:.0f} s of them on a core", flush=True)
        return json.loads(out.read_text()) if done.returncode == 0 else None


def cpu_seconds():
    """Return the CPU time of all processes that this one waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_readme(held):
    """Put the table between README's two marks."""
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    fields = ("name", "fast", "reference", "unit", "goal")
    results = [
        Result(**{key: {"name": name, **line}[key] for key in fields})
        for name, line in held["results"].items()
    ]
    dates = sorted({line["date"] for line in held["results"].values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    lines = [*table(results), "", f"`{held['command']}`, {when}, {held['machine']}."]
    write_text(README, head + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + tail)


def keep(module, results, known):
    """Put what a benchmark measured in the place of its older lines, in the order of `known`."""
    old = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = {name: line for name, line in old.items() if line["module"] != module}
    lines |= {one["name"]: {**one, "date": today, "module": module} for one in results}
    places = {name: place for place, name in enumerate(known)}
    lines = {name: line for name, line in lines.items() if line["module"] in places}
    lines = dict(sorted(lines.items(), key=lambda each: places[each[1]["module"]]))
    held = {"machine": machine(), "command": "make bench", "results": lines}
    write_text(RESULTS, json.dumps(held, indent=1) + "\n")
    write_readme(held)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks; none means all")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    known = modules()
    if unknown := [name for name in options.names if name not in known]:
        raise SystemExit(f"no benchmark {unknown}; there are {', '.join(known)}")
    failed = []
    for name in options.names or known:
        results = measure(known[name], quick=options.quick)
        if results is None:
            failed.append(name)
        elif not options.quick:
            keep(name, results, known)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
