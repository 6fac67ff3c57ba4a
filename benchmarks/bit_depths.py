"""Mask AP of one model on copies of the val images with 8, 12 and 16 bits per channel.

    .venv/bin/python benchmarks/bit_depths.py --model runs/first/model

The copies have random bits below those of the originals, as a camera has. A model of 8-bit images
is given the `input.intensity` that `inspect` recommends for each copy, and `percentile` for all.
The first drops the random bits, so its AP is the same for all three unless the settings are wrong.
Writes benchmarks/bit_depths.json and docs/reference/accuracy.md. Takes a minute or two.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import machine
from pages import BIT_DEPTHS, bit_depth_table, write_pages

from polarmask.config.overrides import override
from polarmask.data.coco import annotation_file, load_coco
from polarmask.engines.torch_engines import Eager
from polarmask.evaluation.evaluate import evaluate
from polarmask.inference.model_folder import load_model
from polarmask.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[1]
FITTING = {8: ["as_is"], 12: ["bit_depth", "12"], 16: ["as_is"]}
"""Settings `input.intensity` and `input.bits` by bits per channel."""


def copy_with(bits, data, to):
    """Write the val split of a COCO folder with so many bits per channel."""
    rng = np.random.default_rng(bits)
    source = annotation_file(data, "val")
    (to / "annotations").mkdir(parents=True)
    shutil.copy(source, to / "annotations" / source.name)
    document = json.loads(source.read_text())
    for name in {image["file_name"] for image in document["images"]}:
        picture = cv2.imread(str(data / "images" / name))
        if bits > 8:
            spare = bits - 8
            low = rng.integers(0, 2**spare, picture.shape, dtype=np.uint16)
            picture = (picture.astype(np.uint16) << spare) + low
        path = (to / "images" / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        path.rename(path.with_name(Path(name).name))
    return to


def mask_ap(model, data, settings):
    """Return the mask AP of a model whose input settings are changed."""
    detector, card = load_model(model)
    card = replace(card, config=override(card.config, settings))
    return evaluate(Predictor(Eager(detector.eval()), card, torch.device("cpu")), data).mask_ap


def described(model):
    """Return in words which network a model has."""
    config = load_model(model)[1].config
    strides = " ".join(map(str, config.model.strides))
    return f"preset `{config.name}`, strides {strides}, {config.model.channels} channels"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    options = parser.parse_args()
    rows = []
    for bits, fitting in FITTING.items():
        with tempfile.TemporaryDirectory() as folder:
            copies = copy_with(bits, options.data, Path(folder) / "data")
            recommended = load_coco(copies, "val").input_settings
            for name, *more in (fitting, ["percentile"]):
                settings = [f"input.intensity={name}", *(f"input.bits={n}" for n in more)]
                if name == "bit_depth" and list(recommended) != settings:
                    raise SystemExit(f"inspect recommends {recommended}, not {settings}")
                ap = mask_ap(options.model, copies, settings)
                rows.append({"bits": bits, "intensity": name, "mask_ap": ap})
                print(rows[-1], flush=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "model": described(options.model),
        "rows": rows,
    }
    BIT_DEPTHS.write_text(json.dumps(record, indent=1) + "\n")
    write_pages()
    print("\n".join(bit_depth_table(record)))


if __name__ == "__main__":
    main()
