"""Images per second of `polarmask precompute` with more processes.

    .venv/bin/python benchmarks/scale_processes.py    chart in docs/images, and the table

Wall-clock time of the whole command on simulated photos (see scale.py).
"""

import os
import tempfile
import time
from pathlib import Path

from chart import draw
from feed import CONFIG
from harness import Result, main, wrong
from scale import write_data

from polarmask.labels.precompute import Workers, precompute


def store_of(data, out, workers):
    """Make a label store; return its files by name and the seconds it took."""
    started = time.perf_counter()
    precompute(data, out, CONFIG, splits=("train",), workers=Workers(workers))
    seconds = time.perf_counter() - started
    return {path.name: path.read_bytes() for path in out.iterdir()}, seconds


def run(quick):
    num_images = 256 if quick else 8192
    cores = os.cpu_count() or 1
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(data, num_images)
        stores = []
        for workers in (0, *range(2, cores + 1)):
            store, seconds = store_of(data, Path(folder) / f"labels-{workers}", workers)
            stores.append(store)
            rates.append((max(workers, 1), num_images / seconds))
    if any(store != stores[0] for store in stores):
        wrong("the labels depend on the number of processes")
    processes, rate = rates[-1]
    yield Result(
        f"precompute with {processes} processes, start-up included (reference: 1 process)",
        rate, rates[0][1], "images/s",
    )  # fmt: skip
    if not quick:
        draw("precompute-processes", "processes", rates, "images/s")


if __name__ == "__main__":
    main(run, __doc__)
