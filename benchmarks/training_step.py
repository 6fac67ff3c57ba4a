"""A training step of R-50 on the CPU: gain of each optimisation, and peak memory.

    .venv/bin/python benchmarks/training_step.py

On the CPU `polarmask train` uses contiguous tensors for this network, and the fused optimiser; bf16
is a setting (`--set optim.amp=bf16`), torch.compile an option (`--compile`). The loss of every
variant must agree with the plain one.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from harness import Result, main, race, wrong

from polarmask.config.presets import coco_r50_1x
from polarmask.network.detector import PolarMask
from polarmask.network.losses import Targets, loss_divisors, loss_sums, normalise_losses, total
from polarmask.training.optim import make_optimizer

CANVAS = (768, 1280)
BATCH = 4
SMALL = (192, 320)
"""For the comparison: one step on the large canvas takes most of a minute on one core."""
CONFIG = coco_r50_1x()
POSITIVES = 85
"""Per image, the average of COCO."""


def batch(model, hw, images):
    """Return images and random targets for them."""
    random = torch.Generator().manual_seed(0)
    locations = sum((hw[0] // s) * (hw[1] // s) for s in model.strides)
    count = min(POSITIVES, locations // 4)
    positives = images * count
    targets = Targets(
        image_P=torch.arange(images).repeat_interleave(count),
        location_P=torch.cat(
            [torch.randperm(locations, generator=random)[:count] for _ in range(images)]
        ),
        category_P=torch.randint(model.num_classes, (positives,), generator=random),
        ray_PR=torch.rand(positives, model.num_rays, generator=random) * 50 + 5,
        box_P4=torch.rand(positives, 4, generator=random) * 50 + 5,
        ignored_I2=torch.zeros(0, 2, dtype=torch.long),
    )
    return torch.randn(images, 3, *hw, generator=random), targets


class Step:
    """Detector and optimiser; calling it takes one training step and returns the loss."""

    def __init__(
        self,
        *,
        config=CONFIG,
        layout=torch.contiguous_format,
        amp=False,
        fused=True,
        compiled=False,
        hw=SMALL,
        images=1,
        device="cpu",
    ):
        torch.manual_seed(0)
        self.loss = config.loss
        self.detector = PolarMask(config.model).to(device).to(memory_format=layout).train()
        self.network = torch.compile(self.detector) if compiled else self.detector
        self.optimizer = make_optimizer(self.detector, replace(config.optim, batch_size=16))
        for group in self.optimizer.param_groups:
            group.update(lr=1e-9, fused=fused)
        image, targets = batch(config.model, hw, images)
        self.image = image.to(device).contiguous(memory_format=layout)
        self.targets = targets.to(torch.device(device))
        self.autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=amp)

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            predictions = self.network(self.image)
        sums = loss_sums(predictions, self.targets, self.loss)
        loss = total(normalise_losses(sums, loss_divisors(sums, self.loss)))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def peak_of_one_step():
    """Take one step; return the peak memory of this process in GiB."""
    torch.set_num_threads(1)
    Step(hw=CANVAS, images=BATCH)()
    # getrusage would include the parent's peak.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def peak_gib():
    """Take a step on the large canvas in its own process; return its peak memory in GiB."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(peak_of_one_step).result()


def compare(expected, other, name, tolerance):
    """Stop unless the other variant's loss agrees; return the variant."""
    if abs(other() - expected) > tolerance * expected:
        wrong(f"the loss of {name} differs from the plain one")
    return other


def run(quick):
    torch.set_num_threads(1)
    size = f"R-50 training step, {SMALL[1]}x{SMALL[0]}"
    plain = Step()
    expected = plain()
    last = compare(expected, Step(layout=torch.channels_last), "channels-last", 1e-4)
    half = compare(expected, Step(amp=True), "bf16", 0.03)
    # Without CPU support a step in bf16 takes half a minute: with --quick only once, for its loss.
    ways = (plain, last) if quick else (plain, last, half)
    own_ms, last_ms, *half_ms = race(*ways, quick=quick, repeats=5)
    yield Result(f"{size}: contiguous (reference: channels-last)", own_ms, last_ms, "ms")
    for milliseconds in half_ms:
        yield Result(f"{size}: bf16 (reference: float32)", milliseconds, own_ms, "ms")
    one_by_one = Step(fused=False)
    one_by_one()
    fused, foreach = race(plain.optimizer.step, one_by_one.optimizer.step, quick=quick)
    yield Result("R-50 optimiser step: fused (reference: foreach)", fused, foreach, "ms")
    if quick:
        return
    started = time.process_time()
    compiled = compare(expected, Step(compiled=True), "torch.compile", 1e-4)
    print(f"compiling took {time.process_time() - started:.0f} s")
    compiled_ms, own_ms = race(compiled, plain, quick=quick, repeats=5)
    yield Result(f"{size}: torch.compile (reference: eager)", compiled_ms, own_ms, "ms")
    what = f"peak memory of a R-50 training step, {CANVAS[1]}x{CANVAS[0]}, batch {BATCH}"
    yield Result(what, peak_gib(), None, "GiB")


if __name__ == "__main__":
    main(run, __doc__)
