"""Run the benchmarks, each in its own process, and write their results.

    .venv/bin/python benchmarks/run.py            all: results.json and docs/reference/speed.md
    .venv/bin/python benchmarks/run.py rays feed  only these; the other rows stay
    .venv/bin/python benchmarks/run.py --quick    minutes; fails on wrong results, writes nothing

Results are written after each benchmark; if one fails, its old rows stay. The exit status is 1
after a wrong result or a crash, whatever the times are.
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

from harness import machine
from pages import RESULTS, write_pages

from polarmask.system.files import write_text

HERE = Path(__file__).parent


def modules():
    """Return the benchmarks by name: the modules here that define `run`."""
    return {
        path.stem: path
        for path in sorted(HERE.glob("*.py"))
        if path.name != "harness.py" and "\ndef run(" in path.read_text(encoding="utf-8")
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
        print(f"   {path.stem} took {took:.0f} s, {cpu:.0f} s of CPU time", flush=True)
        return json.loads(out.read_text()) if done.returncode == 0 else None


def cpu_seconds():
    """Return the CPU time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keep(module, results, known):
    """Replace the rows of a benchmark in results.json; order rows as in `known`."""
    old = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = {name: line for name, line in old.items() if line["module"] != module}
    lines |= {one["name"]: {**one, "date": today, "module": module} for one in results}
    places = {name: place for place, name in enumerate(known)}
    lines = {name: line for name, line in lines.items() if line["module"] in places}
    lines = dict(sorted(lines.items(), key=lambda each: places[each[1]["module"]]))
    held = {"machine": machine(), "command": "make bench", "results": lines}
    write_text(RESULTS, json.dumps(held, indent=1) + "\n")
    write_pages()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="benchmarks to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="check results only; write nothing")
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
