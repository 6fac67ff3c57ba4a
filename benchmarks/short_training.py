"""Ratios behind ADR 0030: memory layout and precision of a training step, and Muon's iteration.

    .venv/bin/python benchmarks/short_training.py

One thread, CPU time, medians of sides that take turns. A step is forward and backward of two images
of 256x256 in the precision of `optim.amp=auto`; the second row says something only where that is
bf16. Stops if the two sides disagree.
"""

import statistics
import time
from dataclasses import replace

import torch
from harness import machine, markdown, wrong

from polarmask.config.presets import light, tiny
from polarmask.network.detector import PolarMask
from polarmask.system.device import half_precision, keep_depthwise_in_float32
from polarmask.training.muon import orthogonal

ROUNDS = 9
WEIGHT = (256, 2304)
"""A 3x3 convolution of 256 channels as a matrix."""


def step(config, layout=torch.channels_last, *, depthwise_in_float32=True):
    """Return a function that takes a step and returns its sum of outputs."""
    torch.manual_seed(0)
    detector = PolarMask(replace(config.model, num_classes=1)).to(memory_format=layout)
    if depthwise_in_float32:
        keep_depthwise_in_float32(detector)
    image = torch.randn(2, 3, 256, 256).contiguous(memory_format=layout)
    half = half_precision("auto", torch.device("cpu"))

    def run():
        with torch.autocast("cpu", dtype=half, enabled=half is not None):
            found = detector(image)
        outputs = (found.class_BLC, found.quality_BL, found.ray_BLR)
        loss = torch.stack([each.float().mean() for each in outputs]).sum()
        loss.backward()
        return loss.detach()

    return run


def published(matrix):
    """The iteration as Jordan et al. write it: three products with the matrix a round."""
    turned = matrix / matrix.norm()
    for _ in range(5):
        square = turned @ turned.T
        turned = 3.4445 * turned + (-4.7750 * square + 2.0315 * square @ square) @ turned
    return turned


def race(name, plain, ours, tolerance):
    """Return a row: median milliseconds of both, and the ratio."""
    sides = {"plain": plain, "ours": ours}
    if not torch.allclose(plain(), ours(), rtol=tolerance, atol=1e-3):
        wrong(f"{name}: the two sides differ")
    seconds = {side: [] for side in sides}
    for _ in range(ROUNDS):
        for side, run in sides.items():
            started = time.process_time()
            run()
            seconds[side].append(time.process_time() - started)
    first, second = (1000 * statistics.median(each) for each in seconds.values())
    return (name, f"{first:.1f}", f"{second:.1f}", f"{first / second:.2f}")


def main():
    torch.set_num_threads(1)
    weight = torch.randn(WEIGHT, generator=torch.Generator().manual_seed(0))
    rows = [
        race(
            "step of `tiny`: contiguous, channels-last",
            step(tiny(), torch.contiguous_format),
            step(tiny()),
            0.02,
        ),
        race(
            "step of `light`: all in bf16, depthwise convolutions in float32",
            step(light(), depthwise_in_float32=False),
            step(light()),
            0.02,
        ),
        race(
            "Muon's iteration: published, ours",
            lambda: published(weight),
            lambda: orthogonal(weight),
            1e-2,
        ),
    ]
    print("\n".join(markdown(("first, second", "first, ms", "second, ms", "ratio"), rows)))
    print(f"on {machine()}")


if __name__ == "__main__":
    main()
