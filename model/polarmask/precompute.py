"""COCO data to ray labels: checked, sharded, resumable.

`polarmask precompute` decodes every image once, so that a truncated file is found here and not in
epoch 7, then writes what each image teaches to a `LabelStore`.
"""

import hashlib
import json
import logging
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from polarmask.coco import (
    CocoData,
    ImageRecord,
    annotation_file,
    category_labels,
    describe_problems,
    load_coco,
)
from polarmask.config import RunConfig
from polarmask.files import sha256_of_file
from polarmask.image_labels import label_image
from polarmask.label_store import (
    FORMAT_VERSION,
    SHARD_IMAGES,
    LabelStore,
    LabelSummary,
    label_settings,
    shard_key,
    summary_to_dict,
    write_shard,
)

logger = logging.getLogger(__name__)

_NUM_WORST = 24


def data_hash(data: Path, split: str) -> str:
    """Return the sha256 of a split's annotation file."""
    return sha256_of_file(annotation_file(data, split))


def find_splits(data: Path) -> tuple[str, ...]:
    """Return "train", which has to be there, and "val" where there is one."""
    return ("train", "val") if annotation_file(data, "val").exists() else ("train",)


def precompute(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    splits: tuple[str, ...] = ("train", "val"),
    workers: int = 0,
) -> LabelStore:
    """Make the labels of every split, or reuse those already there.

    Args:
        data: COCO folder.
        out: Store folder. Whole shards of an interrupted run with equal data and settings stay.
        config: Strides, rays, input size and label rules.
        splits: Names of annotation files.
        workers: Processes; 0 works in this one.

    Returns:
        The finished store.

    Raises:
        DataError: The data can't be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.json").unlink(missing_ok=True)
    entries = {split: _precompute_split(data, split, out, config, workers) for split in splits}
    return LabelStore.write_index(out, label_settings(config), entries)


def _precompute_split(
    data: Path, split: str, out: Path, config: RunConfig, workers: int
) -> dict[str, Any]:
    coco = load_coco(data, split, check_pixels=True)
    if coco.problems:
        logger.warning("%s: %s", split, describe_problems(coco.problems))
    identity = {
        "format": FORMAT_VERSION,
        "data": data_hash(data, split),
        "settings": label_settings(config),
    }
    # The usable images are part of the identity: a repaired image must not hide in an old shard.
    jobs = []
    for number, first in enumerate(range(0, len(coco.images), SHARD_IMAGES)):
        records = coco.images[first : first + SHARD_IMAGES]
        described = json.dumps([identity, [record.id for record in records]], sort_keys=True)
        key = hashlib.sha256(described.encode()).hexdigest()
        jobs.append((out / f"{split}-{number:05d}.safetensors", records, config, key))
    pending = [job for job in jobs if shard_key(job[0]) != job[3]]
    with tqdm(
        total=len(jobs), initial=len(jobs) - len(pending), desc=f"labels {split}", unit="shard"
    ) as bar:
        if workers:
            context = get_context("spawn")  # fork would copy torch's thread pools, which then hang
            with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
                for _ in pool.map(_write_job, pending):
                    bar.update()
        else:
            for job in pending:
                _write_job(job)
                bar.update()
    shards = [
        {"file": path.name, "sha256": sha256_of_file(path), "images": [r.id for r in records]}
        for path, records, _, _ in jobs
    ]
    place = {"shards": shards, "data_hash": identity["data"]}
    reader = LabelStore(out, {"splits": {split: place}})
    return {
        **place,
        "summary": summary_to_dict(_summarise(coco, reader)),
        "problems": dict(Counter(problem.kind for problem in coco.problems)),
    }


def _write_job(job: tuple[Path, tuple[ImageRecord, ...], RunConfig, str]) -> None:
    path, records, config, key = job
    write_shard(path, [label_image(record, config) for record in records], key)


def _summarise(coco: CocoData, store: LabelStore) -> LabelSummary:
    ious: dict[int, list[float]] = {}
    ranked: list[tuple[float, str, int]] = []
    positives = without_positive = annotations = 0
    for record in coco.images:
        labels = store.read(coco.split, record.id)
        positives += len(labels.object_P)
        without_positive += len(labels.category_G) - len(np.unique(labels.object_P))
        annotations += len(record.annotations)
        for category, annotation, iou in zip(
            labels.category_G.tolist(), labels.annotation_G.tolist(), labels.iou_G, strict=True
        ):
            ious.setdefault(category, []).append(float(iou))
            ranked.append((float(iou), record.file_name, annotation))
    instances = len(ranked)
    names = category_labels(coco.categories)
    return LabelSummary(
        images=len(coco.images),
        instances=instances,
        positives=positives,
        without_positive=without_positive,
        ignored=annotations - instances,
        per_category_iou={names[c]: float(np.mean(ious[c])) for c in sorted(ious)},
        per_category_instances={names[c]: len(ious[c]) for c in sorted(ious)},
        worst=tuple((name, number, iou) for iou, name, number in sorted(ranked)[:_NUM_WORST]),
    )
