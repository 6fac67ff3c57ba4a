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
from numpy.typing import NDArray
from tqdm import tqdm

from polarmask import masks
from polarmask.coco import (
    Annotation,
    CocoData,
    ImageRecord,
    annotation_file,
    category_labels,
    describe_problems,
    load_coco,
)
from polarmask.config import RunConfig
from polarmask.files import sha256_of_file
from polarmask.label_store import (
    FORMAT_VERSION,
    SHARD_IMAGES,
    ImageLabels,
    LabelStore,
    LabelSummary,
    label_settings,
    shard_key,
    summary_to_dict,
    write_shard,
)
from polarmask.preprocess import canvas_hw, resized_hw
from polarmask.rays import decode_rays
from polarmask.targets import Assignment, all_locations, assign, level_points

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


def label_image(record: ImageRecord, config: RunConfig) -> ImageLabels:
    """Return what one image teaches at the run's input size."""
    content_hw = resized_hw((record.height, record.width), config.input)
    canvas = canvas_hw(content_hw, config.model.strides)
    scale_2 = np.array([content_hw[1] / record.width, content_hw[0] / record.height])
    objects = [a for a in record.annotations if _is_learned(a, scale_2, config)]
    vertices = [torch.from_numpy(a.parts[0] * scale_2).float() for a in objects]
    found = assign(vertices, canvas, model=config.model, labels=config.labels)
    ignored = [a for a in record.annotations if not _is_learned(a, scale_2, config)]
    return ImageLabels(
        image_id=record.id,
        canvas_hw=canvas,
        location_P3=found.location_P3.numpy(),
        object_P=found.object_P.numpy(),
        ray_PR=found.ray_PR.numpy(),
        category_G=np.array([a.category for a in objects], dtype=np.int64),
        box_G4=_boxes(vertices),
        annotation_G=np.array([a.id for a in objects], dtype=np.int64),
        iou_G=_reached_iou(found, objects, record, scale_2, config),
        ignored_I3=_ignored_locations(ignored, found, record, canvas, scale_2, config),
    )


def _is_learned(annotation: Annotation, scale_2: NDArray[np.float64], config: RunConfig) -> bool:
    area = annotation.area * float(scale_2.prod())
    return not annotation.crowd and area >= config.labels.min_area


def _boxes(vertices: list[torch.Tensor]) -> NDArray[np.float32]:
    if not vertices:
        return np.zeros((0, 4), dtype=np.float32)
    return torch.stack([torch.cat([v.amin(dim=0), v.amax(dim=0)]) for v in vertices]).numpy()


def _reached_iou(
    found: Assignment,
    objects: list[Annotation],
    record: ImageRecord,
    scale_2: NDArray[np.float64],
    config: RunConfig,
) -> NDArray[np.float32]:
    """Decode each object from its positive with the longest shortest ray and compare masks."""
    iou_G = np.zeros(len(objects), dtype=np.float32)
    center_P2 = level_points(found.location_P3, config.model.strides)
    polygon_PR2 = decode_rays(center_P2, found.ray_PR).numpy() / scale_2
    shortest_P = found.ray_PR.amin(dim=1).numpy() if len(found.ray_PR) else np.zeros(0)
    best: dict[int, int] = {}
    for positive, owner in enumerate(found.object_P.tolist()):
        if owner not in best or shortest_P[positive] > shortest_P[best[owner]]:
            best[owner] = positive
    image_hw = (record.height, record.width)
    decoded = masks.rles_from_polygons(
        [polygon_PR2[positive] for positive in best.values()], image_hw
    )
    for owner, rle in zip(best, decoded, strict=True):
        truth = masks.rle_from_segmentation(objects[owner].segmentation, image_hw)
        iou_G[owner] = masks.rle_iou([rle], [truth])[0, 0]
    return iou_G


def _ignored_locations(
    ignored: list[Annotation],
    found: Assignment,
    record: ImageRecord,
    canvas: tuple[int, int],
    scale_2: NDArray[np.float64],
    config: RunConfig,
) -> NDArray[np.int64]:
    """Return locations inside crowd regions and specks that no object claims."""
    if not ignored:
        return np.zeros((0, 3), dtype=np.int64)
    location_L3 = all_locations(canvas, config.model.strides)
    point_L2 = level_points(location_L3, config.model.strides).numpy() / scale_2
    pixel_L2 = point_L2.astype(np.int64)
    on_image_L = (pixel_L2 < (record.width, record.height)).all(axis=1)
    covered_L = np.zeros(len(pixel_L2), dtype=bool)
    for annotation in ignored:
        rle = masks.rle_from_segmentation(annotation.segmentation, (record.height, record.width))
        bitmap = masks.bitmap_from_rle(rle)
        covered_L[on_image_L] |= bitmap[pixel_L2[on_image_L, 1], pixel_L2[on_image_L, 0]]
    claimed = {tuple(location) for location in found.location_P3.tolist()}
    return np.array(
        [p for p in location_L3.numpy()[covered_L].tolist() if tuple(p) not in claimed],
        dtype=np.int64,
    ).reshape(-1, 3)


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
