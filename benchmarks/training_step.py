"""A training step of R-50 on CPU: what each way of speeding it up is worth, and its memory.

    .venv/bin/python benchmarks/training_step.py

`polarmask train` takes contiguous tensors on CPU and the fused optimiser; bf16 is a setting
(`--set optim.amp=bf16`). The loss of every way has to agree with that of the plain one.
"""

import multiprocessing
import resource
import sys
from dataclasses import replace

import torch
from frame import Result, main, race, wrong

from polarmask.config import LossConfig
from polarmask.detector import PolarMask, Targets, loss_divisors, loss_sums, normalise_losses
from polarmask.losses import total
from polarmask.optim import make_optimizer
from polarmask.presets import coco_r50_1x

CANVAS = (768, 1280)
BATCH = 4
SMALL = (192, 320)
"""For the race: one step of the large canvas takes most of a minute on a core."""
CONFIG = coco_r50_1x()
POSITIVES = 85
"""Of an image, as COCO has them on average."""


def batch(hw, images):
    """Return images and random targets for them."""
    random = torch.Generator().manual_seed(0)
    locations = sum((hw[0] // s) * (hw[1] // s) for s in CONFIG.model.strides)
    count = min(POSITIVES, locations // 4)
    positives = images * count
    targets = Targets(
        image_P=torch.arange(images).repeat_interleave(count),
        location_P=torch.cat(
            [torch.randperm(locations, generator=random)[:count] for _ in range(images)]
        ),
        category_P=torch.randint(CONFIG.model.num_classes, (positives,), generator=random),
        ray_PR=torch.rand(positives, CONFIG.model.num_rays, generator=random) * 50 + 5,
        box_P4=torch.rand(positives, 4, generator=random) * 50 + 5,
        ignored_I2=torch.zeros(0, 2, dtype=torch.long),
    )
    return torch.randn(images, 3, *hw, generator=random), targets


class Step:
    """Detector and optimiser, and a step of them."""

    def __init__(
        self,
        *,
        layout=torch.contiguous_format,
        amp=False,
        fused=True,
        hw=SMALL,
        images=1,
        device="cpu",
    ):
        torch.manual_seed(0)
        self.detector = PolarMask(CONFIG.model).to(device).to(memory_format=layout).train()
        self.optimizer = make_optimizer(self.detector, replace(CONFIG.optim, batch_size=16))
        for group in self.optimizer.param_groups:
            group.update(lr=1e-9, fused=fused)
        image, targets = batch(hw, images)
        self.image = image.to(device).contiguous(memory_format=layout)
        self.targets = targets.to(torch.device(device))
        self.autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=amp)

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            predictions = self.detector(self.image)
        sums = loss_sums(predictions, self.targets, LossConfig())
        loss = total(normalise_losses(sums, loss_divisors(sums, LossConfig())))
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def peak_of_one_step(answer):
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(hw=CANVAS, images=BATCH)
    step()
    answer.put((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def peak_gib():
    """Return the peak memory of a step of the large canvas, without what torch itself takes."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak_of_one_step, args=(answer,))
    process.start()
    before, after = answer.get(timeout=1800)
    process.join()
    return (after - before) * (1 if sys.platform == "darwin" else 1024) / 2**30


def run(quick):
    torch.set_num_threads(1)
    plain, channels_last, half = Step(), Step(layout=torch.channels_last), Step(amp=True)
    expected = plain()
    for name, step, tolerance in (("channels-last", channels_last, 1e-4), ("bf16", half, 0.03)):
        if abs(step() - expected) > tolerance * expected:
            wrong(f"the loss of {name} is another than the plain one")
    own, last, bf16 = race(plain, channels_last, half, quick=quick, repeats=5)
    size = f"R-50 step {SMALL[1]}x{SMALL[0]}"
    yield Result(f"{size}: contiguous (ours) against channels-last", own, last, "ms")
    yield Result(f"{size}: bf16 (amp) against float32", bf16, own, "ms")
    one_by_one = Step(fused=False)
    one_by_one()
    fused, foreach = race(plain.optimizer.step, one_by_one.optimizer.step, quick=quick)
    yield Result("R-50 optimiser: fused against foreach", fused, foreach, "ms")
    if not quick:
        peak = peak_gib()
        yield Result(f"peak memory of a step, {CANVAS[1]}x{CANVAS[0]}, batch 4", peak, None, "GiB")


if __name__ == "__main__":
    main(run, __doc__)
