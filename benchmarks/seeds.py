"""Train the demo preset with several seeds: how much does mask AP vary?

    .venv/bin/python benchmarks/seeds.py --seeds 0 1 2

Takes some minutes per seed. Writes benchmarks/seeds/PRESET.json and docs/reference/accuracy.md.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from pages import SEEDS, seed_table, write_pages

ROOT = Path(__file__).resolve().parents[1]


def run_seed(seed, data, preset, processes):
    """Train and evaluate one seed through the command line, as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
        train = (*torchrun, f"--nproc-per-node={processes}", "-m", "polarmask", "train")
        evaluate = (sys.executable, "-m", "polarmask", "evaluate")
        started = time.monotonic()
        subprocess.run(
            [*train, "--preset", preset, "--data", data, "--out", run, "--set", f"seed={seed}"],
            check=True,
        )
        seconds = time.monotonic() - started
        subprocess.run(
            [*evaluate, "--model", run / "model", "--data", data, "--out", run / "report"],
            check=True,
        )
        result = json.loads((run / "report" / "evaluation.json").read_text())
    names = ("mask_ap", "mask_ap50", "mask_ap75")
    return {"seed": seed, "train_seconds": seconds, **{name: result[name] for name in names}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows = [
        run_seed(seed, options.data, options.preset, options.processes) for seed in options.seeds
    ]
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "preset": options.preset,
        "processes": options.processes,
        "runs": rows,
    }
    SEEDS.mkdir(exist_ok=True)
    (SEEDS / f"{options.preset}.json").write_text(json.dumps(record, indent=1) + "\n")
    write_pages()
    print("\n".join(seed_table(record)))


if __name__ == "__main__":
    main()
