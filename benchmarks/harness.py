"""Shared by all benchmarks: compare fast code with simple reference code of equal results.

A benchmark is a module in this folder with

    def run(quick: bool) -> Iterator[Result]:
        ...                       # check equal results first; call `wrong(...)` if they differ
        fast, slow = race(fast_function, reference_function, quick=quick)
        yield Result("name", fast, slow, "ms", goal="<= 4 ms")

    if __name__ == "__main__":
        main(run, __doc__)

`python benchmarks/NAME.py` prints its table; `make bench` runs all of them (benchmarks/run.py).
"""

import argparse
import json
import os
import platform
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_GOAL = re.compile(r"(<=|<|>=|>) (\d+(?:\.\d+)?) (.+)")


class WrongResultError(Exception):
    """The fast code and the reference disagree: the only reason to fail a CI run."""


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    name: str
    fast: float
    reference: float | None
    """Cost of the reference, in the same unit; None without one."""
    unit: str
    """For instance "ms", "images/s", "bytes"."""
    goal: str | None = None
    """"<= 4 ms" bounds `fast`; ">= 10 x" bounds the ratio."""

    def __post_init__(self):
        if self.goal and (not (found := _GOAL.fullmatch(self.goal)) or not self._is_mine(found)):
            raise ValueError(
                f"{self.name}: goal {self.goal!r} is neither '<= 4 {self.unit}' nor '>= 2 x'"
            )

    def _is_mine(self, found):
        return found[3] in (self.unit, "x")

    @property
    def ratio(self):
        """How many times better than the reference: above 1 is better, for times and rates."""
        if self.reference is None:
            return None
        rate = self.unit.endswith("/s") or self.unit == "x"
        return self.fast / self.reference if rate else self.reference / self.fast

    @property
    def met(self):
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        sign, bound, unit = _GOAL.fullmatch(self.goal).groups()
        value = self.ratio if unit == "x" and self.unit != "x" else self.fast
        bound = float(bound)
        return {"<=": value <= bound, "<": value < bound, ">=": value >= bound, ">": value > bound}[
            sign
        ]

    def to_dict(self):
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def wrong(message):
    """Stop the benchmark: the compared functions give different results."""
    raise WrongResultError(message)


def race(*functions, quick, repeats=9, clock=time.process_time):
    """Call the functions in turns and return the median time of each in ms.

    In turns, so that other load on the machine slows all of them alike. CPU time, unless `clock`
    is another. The first round is a warm-up and does not count.
    """
    times = [[] for _ in functions]
    for number in range(1 + (2 if quick else repeats)):
        for own, function in zip(times, functions, strict=True):
            started = clock()
            function()
            if number:
                own.append(1000 * (clock() - started))
    return tuple(float(np.median(own)) for own in times)


def machine():
    """Return the machine as text: cores, processor, Python."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


def table(results):
    """Return the results as lines of Markdown."""
    return markdown(("what", "reference", "ours", "ratio", "goal"), map(_cells, results))


def markdown(header, rows):
    """Return a Markdown table as lines; rows are tuples of text."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]


def _cells(one):
    slow = "-" if one.reference is None else f"{_short(one.reference)} {one.unit}"
    ratio = "-" if one.ratio is None else _short(one.ratio)
    goal = "-" if one.goal is None else one.goal + ("" if one.met else " (missed)")
    return one.name, slow, f"{_short(one.fast)} {one.unit}", ratio, goal


def _short(value):
    if value >= 10000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def make_parser(doc):
    """Return the parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats; checks equality only")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def main(run, doc):
    """Run one benchmark from the command line."""
    options = make_parser(doc).parse_args()
    report(lambda: run(options.quick), options.json)


def report(run, json_file):
    """Run a benchmark, print its table, and write its results if a file is given."""
    try:
        results = list(run())
    except WrongResultError as error:
        raise SystemExit(f"wrong result: {error}") from error
    print("\n".join(table(results)))
    if json_file:
        json_file.write_text(json.dumps([one.to_dict() for one in results]))
