"""Our own model, preset `tiny`; run by `benchmarks/peers.py`.

The preset's schedule needs the number of epochs before it begins: two short trainings tell how many
the budget holds.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from exchange import main, milliseconds, read_split, user_seconds
from judge import operating_score

from polarmask.config.presets import preset
from polarmask.data.coco import load_coco
from polarmask.evaluation.predict_split import predict_split
from polarmask.model_sources.model import load

PRESET = "tiny"
ON = ("--device", "cpu", "--threads", "1")
SHORT = (0.1, 1.0)
"""Epochs of the two short trainings."""


def train(data, out, seconds):
    """Train for as many epochs as the budget holds."""
    with tempfile.TemporaryDirectory() as folder:
        _train(data, Path(folder) / "compiles", SHORT[0])  # the labels' code, on a fresh machine
        short = [_train(data, Path(folder) / str(epochs), epochs) for epochs in SHORT]
    each = (short[1] - short[0]) / (SHORT[1] - SHORT[0])
    epochs = (seconds - short[0]) / each + SHORT[0]
    if epochs < SHORT[0]:
        raise SystemExit(f"{seconds:.0f} s hold no {SHORT[0]} epochs; give {short[0]:.0f} or more")
    shutil.rmtree(out / "run", ignore_errors=True)  # of a stopped one: it may hold other epochs
    used = _train(data, out / "run", round(epochs, 2))
    steps = json.loads((out / "run" / "data.json").read_text())["total_steps"]
    return {
        "seconds": used,
        "steps": steps,
        "batch": preset(PRESET).optim.batch_size,
        "versions": {"polarmask-k8s": version("polarmask-k8s"), "torch": torch.__version__},
    }


def _train(data, out, epochs):
    """Train through the command line; return the user CPU seconds."""
    command = (sys.executable, "-m", "polarmask", "train", "--preset", PRESET)
    before = user_seconds()
    print(f"polarmask: {epochs} epochs", flush=True)
    subprocess.run(
        [*command, *ON, "--data", data, "--out", out, "--set", f"epochs={epochs}"],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return user_seconds() - before


def predict(data, out):
    """Find the instances of both splits, and time those of val at the operating score."""
    model = load(out / "run", device="cpu", threads=1)
    train_split = load_coco(data, "train")
    score = operating_score(data, _found(predict_split(model.finder, train_split), train_split))
    images, _ = read_split(data, "val")
    found = [_plain(model(image, score=0.0)) for image in images]
    return {
        "found": found,
        "operating_score": score,
        "milliseconds": milliseconds(lambda image: model(image, score=score).labels(), images),
    }


def _found(predictions, split):
    return [_plain(predictions[image.id]) for image in split.images]


def _plain(instances):
    return {"rles": instances.rle(), "scores": instances.scores.tolist()}


if __name__ == "__main__":
    main(train, predict, __doc__)
