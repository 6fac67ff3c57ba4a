"""Run the benchmarks, each in a process of its own, and write what they measured.

    .venv/bin/python benchmarks/run.py            all of them: results.json and README's table
    .venv/bin/python benchmarks/run.py rays feed  these; the other lines stay as they are
    .venv/bin/python benchmarks/run.py --quick    minutes; fails on wrong results, writes nothing

Whatever the times are, the exit status tells only of wrong results and crashes.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from frame import Result, table

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
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        return json.loads(out.read_text()) if done.returncode == 0 else None


def machine():
    """Return the processor, cores and libraries that times depend on."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    name = names[0].split(": ")[1] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


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
    README.write_text(
        head + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + tail, encoding="utf-8"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks; none means all")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    known = modules()
    if unknown := [name for name in options.names if name not in known]:
        raise SystemExit(f"no benchmark {unknown}; there are {', '.join(known)}")
    held = (
        json.loads(RESULTS.read_text()) if options.names and RESULTS.exists() else {"results": {}}
    )
    failed = []
    for name in options.names or known:
        results = measure(known[name], quick=options.quick)
        if results is None:
            failed.append(name)
            continue
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        for one in results:
            held["results"][one.pop("name")] = {**one, "date": today, "module": name}
    if not options.quick:
        held = {"machine": machine(), "command": "make bench", "results": held["results"]}
        RESULTS.write_text(json.dumps(held, indent=1) + "\n")
        write_readme(held)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
