"""What every benchmark shares: a fast way raced against a slow, obvious one that gives the same.

A benchmark is a module in this folder with

    def run(quick: bool) -> Iterator[Result]:
        ...                       # check equal results first, say `wrong(...)` where they differ
        fast, slow = race(fast_way, reference_way, quick=quick)
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
    """The fast way does not give what the reference gives: the one reason to fail a CI run."""


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    name: str
    fast: float
    reference: float | None
    """What the reference took, in the same unit; None where there is none."""
    unit: str
    """For instance "ms", "images/s", "bytes"."""
    goal: str | None = None
    """"<= 4 ms": `fast` has to be so. ">= 10 x": the ratio has to be."""

    def __post_init__(self):
        if self.goal and (not (found := _GOAL.fullmatch(self.goal)) or not self._is_mine(found)):
            raise ValueError(
                f"{self.name}: goal {self.goal!r} is neither '<= 4 {self.unit}' nor '>= 2 x'"
            )

    def _is_mine(self, found):
        return found[3] in (self.unit, "x")

    @property
    def ratio(self):
        """How many times better than the reference; more is better for times and for rates."""
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
    """Stop: the ways that are to be compared do different things."""
    raise WrongResultError(message)


def race(*ways, quick, repeats=9, clock=time.process_time):
    """Run the ways in turns and return the median time of each in ms.

    Turns, because a noisy neighbour then slows all of them alike; CPU time unless `clock` says
    otherwise. The first round warms up and does not count.
    """
    times = [[] for _ in ways]
    for number in range(1 + (2 if quick else repeats)):
        for own, way in zip(times, ways, strict=True):
            started = clock()
            way()
            if number:
                own.append(1000 * (clock() - started))
    return tuple(float(np.median(own)) for own in times)


def machine():
    """Return the processor, cores and Python that times depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores of {name}, Python {platform.python_version()}"


def table(results):
    """Return the results as lines of Markdown."""
    lines = ["| what | reference | ours | ratio | goal |", "|---|---|---|---|---|"]
    for one in results:
        slow = "-" if one.reference is None else f"{_short(one.reference)} {one.unit}"
        ratio = "-" if one.ratio is None else _short(one.ratio)
        goal = "-" if one.goal is None else one.goal + ("" if one.met else " (missed)")
        lines.append(f"| {one.name} | {slow} | {_short(one.fast)} {one.unit} | {ratio} | {goal} |")
    return lines


def _short(value):
    if value >= 10000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main(run, doc):
    """Be the command line of one benchmark."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repeats; proves equality only")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    options = parser.parse_args()
    try:
        results = list(run(options.quick))
    except WrongResultError as error:
        raise SystemExit(f"wrong result: {error}") from error
    print("\n".join(table(results)))
    if options.json:
        options.json.write_text(json.dumps([one.to_dict() for one in results]))
