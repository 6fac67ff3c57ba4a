"""Compare our model with StarDist and Mask R-CNN by CPU time of training.

    .venv/bin/python benchmarks/peers.py                                  366 s each, as below
    .venv/bin/python benchmarks/peers.py --budget ours=366 stardist=366 maskrcnn=366
    .venv/bin/python benchmarks/peers.py --quick                          60 s each; no page

All learn the train split of the bundled nuclei and are judged on the val split, by the same code:
COCO mask AP, and StarDist's accuracy, TP / (TP + FP + FN). None sees the val split before: our
score threshold and Mask R-CNN's have the best F1 on the train split; StarDist chooses its own on
15 % of the train split, which it does not learn. `stardist` has StarDist's default settings,
`stardist-example` those of its training example. `maskrcnn` is in peer_networks/mask_rcnn.py.

Budgets are user CPU seconds of a process with one thread. StarDist and TensorFlow are installed in
an environment in runs/peers. What is finished there is not done again: a stopped comparison goes
on; remove runs/peers to start again. Writes benchmarks/peers.json and docs/reference/accuracy.md.
Takes an hour.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from harness import WrongResultError, machine, wrong
from pages import PEERS, peer_table, write_pages
from peer_networks.exchange import PREDICTIONS, TRAINING
from peer_networks.judge import accuracies, evaluation_of, label_image

from polarmask.data.coco import annotation_file, load_coco
from polarmask.data.images import read_image
from polarmask.geometry.masks import labels_from_rles, rle_from_segmentation, rles_from_labels

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "ours": "ours.py",
    "stardist": "star_dist.py",
    "stardist-example": "star_dist.py",
    "maskrcnn": "mask_rcnn.py",
}
FULL, QUICK = 366.0, 60.0
"""User CPU seconds; the first is what the preset `tiny` took before 2026-11-29."""
STARDIST_PACKAGES = ("stardist==0.9.2", "tensorflow-cpu==2.21.0")
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
}


def prepare(data, folder):
    """Write what the networks learn: the train split as COCO, and both splits as arrays."""
    ready = folder / ".ready"
    if ready.exists():
        return
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    shutil.copy(annotation_file(data, "train"), folder / "annotations")
    (folder / "images").unlink(missing_ok=True)
    (folder / "images").symlink_to((data / "images").resolve())
    for split in ("train", "val"):
        coco = load_coco(data, split)
        labels = np.stack([_truth(image) for image in coco.images])
        images = np.stack([_grey(coco.image_path(image)) for image in coco.images])
        np.savez_compressed(folder / f"{split}.npz", images=images, labels=labels)
    ready.touch()


def digest(data):
    """Return a name for the annotations, so that results of other data are never taken."""
    files = (annotation_file(data, split) for split in ("train", "val"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _truth(image):
    hw = image.height, image.width
    rles = [rle_from_segmentation(each.segmentation, hw) for each in image.annotations]
    return labels_from_rles(rles, hw)


def _grey(path):
    pixels = read_image(path)
    if (pixels != pixels[..., :1]).any():
        raise SystemExit(f"{path} has colours; the networks compared here take grey images")
    return np.ascontiguousarray(pixels[..., 0])


def python_for(script, folder):
    """Return the interpreter of a script; StarDist's environment is made if need be."""
    if script != "star_dist.py":
        return sys.executable
    ready, python = folder / ".ready", folder / "bin" / "python"
    wanted = "\n".join(STARDIST_PACKAGES)
    if not ready.exists() or ready.read_text() != wanted:
        print(f"== installing {', '.join(STARDIST_PACKAGES)} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", *STARDIST_PACKAGES], check=True)
        ready.write_text(wanted)
    return python


def measure(name, seconds, data, runs):
    """Train and predict, as far as that is not done; return the row of the table."""
    out = runs / f"{name}-{seconds:g}"
    out.mkdir(parents=True, exist_ok=True)
    python = python_for(SCRIPTS[name], runs.parent / "stardist-environment")
    script = ROOT / "benchmarks" / "peer_networks" / SCRIPTS[name]
    for part, made in (("train", TRAINING), ("predict", PREDICTIONS)):
        if (out / made).exists():
            continue
        print(f"== {name}, {seconds:.0f} s: {part}", flush=True)
        started = time.monotonic()
        subprocess.run(
            [
                python,
                script,
                part,
                "--data",
                runs / "data",
                "--out",
                out,
                "--seconds",
                f"{seconds}",
            ],
            env={**os.environ, **ONE_THREAD},
            check=True,
        )
        print(f"   {part} took {time.monotonic() - started:.0f} s", flush=True)
    return {"name": name, "budget": seconds, **judge(out, data, runs / "data")}


def judge(out, data, arrays):
    """Evaluate what a network found in the val split."""
    training, held = (json.loads((out / name).read_text()) for name in (TRAINING, PREDICTIONS))
    with np.load(arrays / "val.npz") as split:
        truths = split["labels"]
    found, labels = _stardist(out, held) if "accuracy" in held else _by_masks(held, truths)
    evaluation = evaluation_of(data, "val", found)
    accuracy = accuracies(truths, labels)
    if not np.allclose(accuracy, held.get("accuracy", accuracy), rtol=0, atol=1e-9):
        wrong(f"{out.name}: accuracy {accuracy}, by stardist.matching {held['accuracy']}")
    return {
        **training,
        "milliseconds": held["milliseconds"],
        "operating_score": held["operating_score"],
        "mask_ap": evaluation.mask_ap,
        "mask_ap50": evaluation.mask_ap50,
        "mask_ap75": evaluation.mask_ap75,
        "max_detections": evaluation.max_detections,
        "accuracy": accuracy,
    }


def _by_masks(held, truths):
    score, hw = held["operating_score"], truths.shape[1:]
    return held["found"], [label_image(found, score, hw) for found in held["found"]]


def _stardist(out, held):
    """Return masks and scores of every object, and the label images at its own thresholds."""
    with np.load(out / "labels.npz") as file:
        every, labels = file["every"], file["found"]
    found = [
        # An object that others cover has no pixel, and so no mask.
        {"rles": rles_from_labels(own), "scores": [scores[n - 1] for n in np.unique(own[own > 0])]}
        for own, scores in zip(every, held["scores"], strict=True)
    ]
    return found, labels


def budget(text):
    """Read NAME=SECONDS."""
    name, _, seconds = text.partition("=")
    if name not in SCRIPTS:
        raise argparse.ArgumentTypeError(f"no network {name!r}; there are {', '.join(SCRIPTS)}")
    try:
        value = float(seconds)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: give CPU seconds, as in {name}=366")
    return name, value


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--budget",
        type=budget,
        nargs="+",
        metavar="NAME=SECONDS",
        help=f"rows of the table: {', '.join(SCRIPTS)}, with the user CPU seconds of training "
        f"(default: {FULL:.0f} each)",
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"write no page; without --budget {QUICK:.0f} s each"
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "peers")
    options = parser.parse_args()
    runs = options.runs.resolve() / digest(options.data)
    prepare(options.data, runs / "data")
    budgets = options.budget or [(name, QUICK if options.quick else FULL) for name in SCRIPTS]
    try:
        rows = [measure(*each, options.data, runs) for each in budgets]
    except WrongResultError as error:
        raise SystemExit(f"wrong result: {error}") from error
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"failed, see above: {' '.join(map(str, error.cmd))}") from error
    given = " ".join(f"{name}={seconds:g}" for name, seconds in budgets)
    record = {
        "command": f".venv/bin/python benchmarks/peers.py --budget {given}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "rows": rows,
    }
    if not options.quick:
        PEERS.write_text(json.dumps(record, indent=1) + "\n")
        write_pages()
    print("\n".join(peer_table(record)))


if __name__ == "__main__":
    main()
