"""Is the data loader fast enough to train a ResNet-50 at 1280x768, and what do labels cost?

    .venv/bin/python benchmarks/feed.py

The loader of `train` reads, mirrors and batches the photos in tests/data, enlarged to COCO's 640
pixels and repeated: once with labels from a store, once with labels computed for random sizes. The
training step (forward, losses, backward, SGD) is timed alone, on both cores. Times are wall clock.
"""

import copy
import json
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from harness import Result, main, race, wrong
from torch.utils.data import DataLoader

from polarmask.config.input_settings import InputConfig
from polarmask.config.presets import tiny
from polarmask.config.settings import LabelConfig, ModelConfig
from polarmask.data.coco import load_coco
from polarmask.data.labels import apply_to_labels
from polarmask.data.preprocess import normalise
from polarmask.geometry.symmetry import Symmetry
from polarmask.labels.image_labels import label_image, label_view
from polarmask.labels.precompute import precompute
from polarmask.network import losses
from polarmask.network.detector import PolarMask
from polarmask.network.losses import loss_divisors, loss_sums, normalise_losses
from polarmask.training.dataset import StepSampler, TrainingImages, collate

PHOTOS = Path(__file__).parents[1] / "tests" / "data" / "coco_photos"
CONFIG = replace(
    tiny(),
    input=InputConfig(short_side=768, max_side=1280),
    model=ModelConfig(backbone_norm="group"),
    labels=LabelConfig(),
    augment="flip",
)
CORES = 2
BATCH = 2


def enlarged(folder, copies):
    """Write `copies` of each photo, with COCO's size and the aspect ratio of 1280x768."""
    source = json.loads((PHOTOS / "annotations" / "instances_train.json").read_bytes())
    document = {"images": [], "annotations": [], "categories": source["categories"]}
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(copies):
        for entry in source["images"]:
            factors = (640 / entry["width"], 384 / entry["height"])
            image_id, name = len(document["images"]) + 1, f"{number}-{entry['file_name']}"
            pixels = cv2.imread(str(PHOTOS / "images" / entry["file_name"]))
            pixels = cv2.resize(pixels, (640, 384))
            cv2.imwrite(str(folder / "images" / name), pixels)
            size = {"width": 640, "height": 384}
            document["images"].append({"id": image_id, "file_name": name, **size})
            for object_ in source["annotations"]:
                if object_["image_id"] != entry["id"]:
                    continue
                scaled = copy.deepcopy(object_)
                parts = [
                    (np.reshape(part, (-1, 2)) * factors).flatten().tolist()
                    for part in object_["segmentation"]
                ]
                ids = {"id": len(document["annotations"]) + 1, "image_id": image_id}
                document["annotations"].append(
                    {**scaled, **ids, "segmentation": parts, "bbox": [0, 0, 1, 1]}
                )
    text = json.dumps(document)
    (folder / "annotations" / "instances_train.json").write_text(text, encoding="utf-8")
    return folder


def loader(images, batches, workers):
    sampler = StepSampler(len(images), BATCH, images.canvas_hw, seed=0, steps=range(batches))
    return DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=partial(collate, config=images.view((0, 0))[0]),
        num_workers=workers,
    )


def images_per_second(images, batches):
    """Measure without the start of the workers, which takes seconds but happens once per run."""
    stream = iter(loader(images, batches + 2 * CORES, CORES))
    for _ in range(2 * CORES):  # what the workers have prefetched
        next(stream)
    started = time.perf_counter()
    count = sum(len(batch.image_ids) for batch in stream)
    return count / (time.perf_counter() - started)


def training_step(batch):
    """Return a training step on a batch, and its number of images."""
    torch.manual_seed(0)
    model = replace(CONFIG.model, num_classes=80)
    network = PolarMask(model).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step():
        optimizer.zero_grad(set_to_none=True)
        image = normalise(batch.image_BHW3, CONFIG.input)
        predictions = network(image.contiguous(memory_format=torch.channels_last))
        sums = loss_sums(predictions, batch.targets, CONFIG.loss)
        losses.total(normalise_losses(sums, loss_divisors(sums, CONFIG.loss))).backward()
        optimizer.step()

    return step, len(batch.image_ids)


def check(store, records):
    """Stop unless the labels in the store equal those computed directly."""
    for record in records:
        made, read = label_image(record, CONFIG), store.read("train", record.id)
        same = np.array_equal(made.location_P3, read.location_P3)
        if not same or not np.allclose(made.ray_PR, read.ray_PR, rtol=2e-4):
            wrong(f"{record.file_name}: labels in the store differ from computed ones")


def run(quick):
    torch.set_num_threads(CORES)
    with tempfile.TemporaryDirectory() as folder:
        data = enlarged(Path(folder) / "data", copies=1 if quick else 8)
        store = precompute(data, Path(folder) / "labels", CONFIG, splits=("train",))
        coco = load_coco(data, "train")
        check(store, coco.images)
        yield from _measured(coco, store, quick)


def _measured(coco, store, quick):
    count = len(coco.images)
    flip = Symmetry(flip_x=True)

    def read():
        for record in coco.images:
            store.read("train", record.id)

    def read_flipped():
        for record in coco.images:
            apply_to_labels(store.read("train", record.id), flip, CONFIG.model.strides)

    def make():
        for record in coco.images:
            label_view(record, CONFIG, flip)

    read_ms, flipped_ms, made_ms = (
        ms / count for ms in race(read, read_flipped, make, quick=quick)
    )
    objects = sum(len(record.annotations) for record in coco.images) / count
    yield Result(
        f"read an image's labels from the store, {objects:.1f} objects (reference: compute them)",
        read_ms, made_ms, "ms", goal="<= 0.3 ms",
    )  # fmt: skip
    yield Result("read and mirror them (reference: compute them)", flipped_ms, made_ms, "ms")

    if quick:  # the rest compares only times
        return
    stored = TrainingImages(coco, store, CONFIG)
    drawn_input = replace(CONFIG.input, train_short_sides=(640, 768))
    drawn = TrainingImages(coco, store, replace(CONFIG, input=drawn_input))
    from_store, drawn_sizes = (images_per_second(each, batches=60) for each in (stored, drawn))
    batch = next(iter(loader(stored, 1, 0)))
    step, images = training_step(batch)
    step_ms = float(np.median([_once(step) for _ in range(3)]))
    trained = 1000 * images / step_ms
    rows, columns = batch.image_BHW3.shape[1:3]
    machine = f"{CORES} cores, R-50 {columns}x{rows}"
    yield Result(
        f"data loader, labels from the store (reference: training, {machine})",
        from_store, trained, "images/s", goal=">= 3 x",
    )  # fmt: skip
    yield Result(
        "data loader, random sizes, labels computed (reference: the same training)",
        drawn_sizes, trained, "images/s", goal=">= 3 x",
    )  # fmt: skip
    share = 100 * flipped_ms * images / step_ms
    yield Result("labels, in percent of that training step", share, None, "%", goal="< 1 %")


def _once(step):
    started = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main(run, __doc__)
