"""Speed on the GPU of this machine, beside the figures of PolarMask and PolarNeXt.

    .venv/bin/python benchmarks/gpu.py
    .venv/bin/python benchmarks/gpu.py --device cpu    to try the script itself

R-50 with random weights, which do not change the speed. The published figures are of the network
alone, without decoding and masks. End to end is one image of COCO's size, in memory, to RLE
masks. Training steps take the presets' own losses and optimisers.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import markdown
from rays import CANVAS, LABELS, MODEL, scenes
from training_step import Step

from polarmask.config.presets import preset
from polarmask.data.coco import Category
from polarmask.data.preprocess import canvas_hw
from polarmask.geometry.rays import Polygons
from polarmask.inference.model_folder import ModelCard, save_model
from polarmask.inference.predictor import Predictor
from polarmask.labels.targets import assign_batch
from polarmask.network.detector import PolarMask
from polarmask.system.device import find_device

SHORT_SIDES = (800, 600, 400)
PUBLISHED_FPS = {
    "coco-r50-1x": {800: "23.9 (V100)", 600: "34.1 (V100)", 400: "46.7 (V100)"},
    "star-r50-1x": {800: "49 (RTX 4090D)"},
}
"""By preset and short side: PolarMask's README; PolarNeXt's paper, at the size of its training."""
TRAINED = ("coco-r50-1x", "star-r50-1x", "star-convnext-t-3x", "tiny")


def rate(call, count, device, *, seconds):
    """Return items per second, with `count` items per call; the first two calls are warm-up."""
    for _ in range(2):
        call()
    synchronize(device)
    calls, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds or not calls:
        call()
        calls += 1
        synchronize(device)
    return calls * count / (time.perf_counter() - started)


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def predictor(name, short_side, folder, device):
    """Return a preset's network with random weights for images of a short side."""
    config = preset(name)
    sizes = replace(config.input, short_side=short_side, max_side=short_side * 5 // 3)
    config = replace(config, input=sizes)
    categories = tuple(Category(i + 1, f"category {i}") for i in range(config.model.num_classes))
    save_model(folder, PolarMask(config.model), ModelCard(config, categories))
    return Predictor.load(folder, device=device)


@torch.inference_mode()
def inference(name, device, seconds):
    """Yield short side, images/s of the network, images/s end to end."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for short_side in SHORT_SIDES:
        with tempfile.TemporaryDirectory() as folder:
            ready = predictor(name, short_side, Path(folder) / "model", device)
        sizes = ready.card.config
        hw = canvas_hw((short_side, short_side * 4 // 3), sizes.model.strides, sizes.input.multiple)
        run = partial(ready.engine.run, torch.zeros(1, 3, *hw, device=device))
        network = rate(run, 1, device, seconds=seconds)
        whole = rate(partial(masks, ready, image), 1, device, seconds=seconds)
        yield short_side, network, whole


def masks(ready, image):
    return ready.predict([image])[0].rle()


def training(name, device, seconds, images, hw):
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    step = Step(
        config=preset(name), layout=layout, amp=True, hw=hw, images=images, device=device.type
    )
    return rate(step, images, device, seconds=seconds)


def labels(device, seconds):
    """Return images/s of ray labels, eight images per call."""
    outlines = (scenes() * 8)[:8]
    vertices = [torch.from_numpy(outline) for own in outlines for outline in own]
    flat = Polygons.from_vertices(vertices)
    polygons = type(flat)(*(value.to(device) for value in vars(flat).values()))
    counts = torch.tensor([len(own) for own in outlines])
    image_G = torch.arange(len(outlines)).repeat_interleave(counts).to(device)
    canvas_I2 = torch.tensor([CANVAS] * len(outlines), device=device)
    return rate(
        lambda: assign_batch(polygons, image_G, canvas_I2, model=MODEL, labels=LABELS),
        len(outlines),
        device,
        seconds=seconds,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--seconds", type=float, default=5, help="duration of each measurement (default: 5)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    device = find_device(options.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    figures, rows = {"machine": name}, []
    for run, published in PUBLISHED_FPS.items():
        for short_side, network, whole in inference(run, device, options.seconds):
            cells = (f"{network:.1f}", published.get(short_side, "-"), f"{whole:.1f}")
            rows.append((f"`{run}`", f"{short_side}", *cells))
            figures[f"{run} {short_side}"] = {"network": network, "end_to_end": whole}
    header = ("preset", "short side", "network, images/s", "published", "end to end, images/s")
    print("\n".join(markdown(header, rows)))
    images, hw = (16, (768, 1280)) if on_gpu else (1, (192, 320))
    figures["training"] = {
        run: training(run, device, options.seconds, images, hw) for run in TRAINED
    }
    figures["labels"] = labels(device, options.seconds)
    print(f"\ntraining steps in bf16 of {images} images of {hw[1]}x{hw[0]}:")
    for run, speed in figures["training"].items():
        print(f"- `{run}`: {speed:.1f} images/s")
    print(f"ray labels, {CANVAS[1]}x{CANVAS[0]}: {figures['labels']:.0f} images/s")
    if options.json:
        options.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
