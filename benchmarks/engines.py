"""Engines on one CPU thread, against eager float32 and against Mask R-CNN.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/engines.py

Both sides run in one process, in turns. Weights are random, which does not change the time; both
sides return 100 instances. Before timing, the outputs of float32 and bf16 engines must be within
tolerance of eager. With random weights, 8-bit rounding errors grow from layer to layer, so int8
must only correlate with eager; `measure` checks its accuracy on trained models and rejects it at a
loss of 0.3 points of mask AP.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from harness import Result, main, race, wrong

from polarmask.config.presets import preset
from polarmask.data.coco import Category
from polarmask.data.images import read_image
from polarmask.engines.export import export_program
from polarmask.engines.interface import ENGINES, INT8_FILE, PROGRAM_FILE
from polarmask.engines.machine import has_bf16
from polarmask.engines.quantize import calibrate, quantize_program
from polarmask.inference.model_folder import ModelCard, load_model, save_model
from polarmask.inference.predictor import Predictor
from polarmask.network.detector import PolarMask

PHOTO = Path(__file__).parents[1] / "tests/data/coco_photos/images/000000000165.jpg"
DEFAULT = "openvino_int8"
"""The engine that `measure` ranks first for these networks if int8 keeps the mask AP."""


def save(folder, name, side):
    """Write a model of a preset, for square images, with weights that find many instances."""
    torch.manual_seed(0)
    config = preset(name)
    sized = replace(config.input, short_side=side, max_side=side, keep_ratio=True)
    hundred = replace(config.postprocess, max_instances=100)
    config = replace(config, input=sized, postprocess=hundred)
    detector = PolarMask(config.model).eval()
    torch.nn.init.normal_(detector.head.class_logit.weight, std=0.05)
    torch.nn.init.constant_(detector.head.class_logit.bias, -2.0)
    categories = tuple(Category(n + 1, str(n)) for n in range(config.model.num_classes))
    card = ModelCard(config, categories)
    save_model(folder, detector, card)
    batch = Predictor.load(folder, engine="eager").network_input(square(side))
    calibrate_norms(detector, batch)
    save_model(folder, detector, card)
    program = folder / PROGRAM_FILE
    export_program(load_model(folder)[0], program)
    quantize_program(program, calibrate(program, [batch]), folder / INT8_FILE)
    return folder


def calibrate_norms(detector, batch):
    """Set batch-norm statistics from an image and scale residuals down, as training would.

    Otherwise activations grow from layer to layer beyond the range of 8 bits.
    """

    def set_statistics(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)) + 1e-3)

    handles = []
    for name, module in detector.named_modules():
        if "BatchNorm" in type(module).__name__:
            handles.append(module.register_forward_pre_hook(set_statistics))
            if name.endswith("bn3"):
                torch.nn.init.constant_(module.weight, 0.2)
    with torch.no_grad():
        detector(batch)
    for handle in handles:
        handle.remove()


def check(folder, image, name):
    """Stop unless an engine is within tolerance of eager float32; int8 must only correlate."""
    eager, other = Predictor.load(folder, engine="eager"), Predictor.load(folder, engine=name)
    if other.engine.name != name:
        wrong(f"{name} does not run")
    batch = eager.network_input(image)
    with torch.inference_mode():
        one, two = eager.engine.run(batch), other.engine.run(batch)
    if ENGINES[name].program == INT8_FILE:
        logits = torch.stack([one.class_BLC.flatten(), two.class_BLC.flatten()])
        if (alike := float(torch.corrcoef(logits)[0, 1])) < 0.8:
            wrong(f"{name}: class logits have a correlation of only {alike:.2g} with eager's")
        return eager, other, batch
    scores = [
        each.class_BLC.float().sigmoid() * each.quality_BL.float().sigmoid()[..., None]
        for each in (one, two)
    ]
    if (off := float((scores[0] - scores[1]).abs().max())) > ENGINES[name].score_tolerance:
        wrong(f"{name}: scores differ by {off:.2g}")
    if (off := float((two.ray_BLR / one.ray_BLR - 1).abs().max())) > ENGINES[name].ray_tolerance:
        wrong(f"{name}: rays differ by {off:.2g} of their length")
    return eager, other, batch


def runs_here(name):
    return "bf16" not in name or has_bf16()


def network(predictor, batch):
    def way():
        with torch.inference_mode():
            predictor.engine.run(batch)

    return way


def final_masks(predictor, image):
    def way():
        (found,) = predictor.predict([image])
        if len(found.rle()) != 100:
            wrong(f"{len(found)} instances, not 100")

    return way


def mask_r_cnn(image):
    torch.manual_seed(0)
    rival = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=640, max_size=640
    ).eval()
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255

    def way():
        with torch.inference_mode():
            (found,) = rival([tensor])
        if len(found["masks"]) != 100:
            wrong(f"Mask R-CNN: {len(found['masks'])} instances, not 100")

    return way


def square(side):
    image = read_image(PHOTO)
    short = min(image.shape[:2])
    image = image[:short, :short]
    rows = np.linspace(0, short - 1, side).astype(int)
    return np.ascontiguousarray(image[rows][:, rows])


def run(quick):
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        yield from compare(Path(folder), quick)


def compare(folder, quick):
    side, name = (256, "tiny") if quick else (512, "coco-r50-1x")
    model, image = save(folder / "r50", name, side), square(side)
    eager, fastest, batch = check(model, image, DEFAULT)
    ways = [network(fastest, batch), network(eager, batch)]
    names = [one for one, kind in ENGINES.items() if kind.device == "cpu" and runs_here(one)]
    others = [check(model, image, one)[1] for one in names if one not in ("eager", DEFAULT)]
    times = race(*ways, *(network(one, batch) for one in others), quick=quick, repeats=5)
    size = f"{name}, {side}x{side}, one thread"
    against_eager = "(reference: eager)"
    goal = None if quick else ">= 2.2 x" if has_bf16() else ">= 1.3 x"
    yield Result(f"network, {size}: {DEFAULT} {against_eager}", *times[:2], "ms", goal=goal)
    for other, milliseconds in zip(others, times[2:], strict=True):
        text = f"network, {size}: {other.engine.name} {against_eager}"
        yield Result(text, milliseconds, times[1], "ms")
    if quick:
        return
    image = square(640)
    model = save(folder / "r50-640", "coco-r50-1x", 640)
    eager, fastest, _ = check(model, image, DEFAULT)
    ways = [final_masks(one, image) for one in (fastest, eager)]
    quick_ms, eager_ms, rival_ms = race(*ways, mask_r_cnn(image), quick=quick, repeats=3)
    what, rival = "image to 100 masks, 640x640, one thread", "torchvision's Mask R-CNN R50-FPN"
    yield Result(f"{what}: {DEFAULT} (reference: {rival})", quick_ms, rival_ms, "ms", goal=">= 4 x")
    yield Result(f"{what}: eager (reference: {rival})", eager_ms, rival_ms, "ms", goal=">= 1.5 x")
    model = save(folder / "light", "light", 640)
    eager, fastest, batch = check(model, image, DEFAULT)
    ways = [network(fastest, batch), network(eager, batch)]
    light_ms, slow_ms = race(*ways, quick=quick, repeats=5)
    text = f"network, light, 640x640, one thread: {DEFAULT} {against_eager}"
    yield Result(text, light_ms, slow_ms, "ms", goal="<= 342 ms")


if __name__ == "__main__":
    main(run, __doc__)
