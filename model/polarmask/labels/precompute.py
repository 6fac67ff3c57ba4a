"""COCO data to a label store: checked, sharded, resumable, on many processes and machines.

`polarmask precompute` decodes every image once, so that a truncated file is found here and not in
epoch 7, and writes the labels of each image to a shard of a `LabelStore`. Each shard also holds
what its images add up to, so the last step only collects, wherever the shards were made.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, field, replace
from heapq import nsmallest
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polarmask.config.input_settings import InputConfig
from polarmask.config.settings import RunConfig
from polarmask.data.coco import (
    CocoData,
    ImageRecord,
    annotation_file,
    category_labels,
    load_coco,
)
from polarmask.data.image_checks import ImageChecks
from polarmask.data.labels import ImageLabels
from polarmask.data.match_categories import match_categories
from polarmask.data.summary import Problem, SplitSummary
from polarmask.errors import DataError
from polarmask.labels.image_labels import label_images
from polarmask.labels.store import (
    FORMAT,
    SHARD_IMAGES,
    LabelStore,
    LabelSummary,
    label_settings,
    shard_facts,
    write_shard,
)
from polarmask.system.files import atomic_path, sha256_of_file
from polarmask.system.progress_bar import progress_bar
from polarmask.system.signals import end_with_parent, no_interrupts_in_children

_ANY_IMAGE = InputConfig(intensity="percentile", max_pixels=2**31 - 1)
"""Labels depend on no value of a pixel: a store serves runs with other settings for these."""
_NUM_WORST = 24


def data_hash(data: Path, split: str) -> str:
    """Return the sha256 of a split's annotation file."""
    return sha256_of_file(annotation_file(data, split))


def find_splits(data: Path) -> tuple[str, ...]:
    """Return "train", which has to be there, and "val" where there is one."""
    return ("train", "val") if annotation_file(data, "val").exists() else ("train",)


@dataclass(frozen=True)
class Workers:
    """Where labels are made; the labels do not depend on it."""

    processes: int = 0
    """Worker processes; 0 works in this process."""
    device: str | None = None
    """As for `label_images`; "cuda" distributes the workers over the machine's GPUs."""


@dataclass(frozen=True)
class EveryNth:
    """Every n-th shard of a split from the first-th on: what one of n machines makes."""

    first: int
    """From 1 to `n`."""
    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.n:
            raise DataError(f"shard {self.first}/{self.n}: give 1/{self.n} to {self.n}/{self.n}")


def precompute(
    data: Path,
    out: Path,
    config: RunConfig,
    *,
    splits: tuple[str, ...] = ("train", "val"),
    workers: Workers = Workers(),
    made: Sequence[Path] = (),
    strict: bool = False,
) -> LabelStore:
    """Make the labels of every split, or reuse those already there.

    Args:
        data: COCO folder.
        out: Store folder. Whole shards of an interrupted run with equal data and settings stay.
        config: Strides, rays, input size and label rules.
        splits: Names of annotation files.
        workers: Processes and device.
        made: Folders that `precompute_shards` wrote elsewhere: whole shards are copied from them.
        strict: Refuse data of which an image or object is left out.

    Returns:
        The finished store.

    Raises:
        DataError: The data can't be used.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.json").unlink(missing_ok=True)
    entries = {}
    for coco in load_splits(data, splits, strict=strict, config=_ANY_IMAGE):
        jobs = list(_jobs(coco, out, config))
        for job in jobs:
            _take(job, made)
        _run(jobs, workers, coco.split)
        entries[coco.split] = _gather(coco, jobs, data_hash(data, coco.split), strict=strict)
    return LabelStore.write_index(out, label_settings(config), entries)


def load_splits(
    data: Path,
    splits: Sequence[str],
    *,
    strict: bool = False,
    check_pixels: bool = False,
    config: InputConfig | None = None,
) -> list[CocoData]:
    """Load splits, and compare the categories of the others with those of the first.

    Args:
        data: COCO folder.
        splits: Names of annotation files.
        strict: Refuse data of which an image or object is left out.
        check_pixels: As for `load_coco`.
        config: As for `load_coco`.

    Raises:
        DataError: A split can't be used, or categories contradict each other.
    """
    first, *others = (
        load_coco(data, split, check_pixels=check_pixels, config=config) for split in splits
    )
    known_by = f"the {first.split} split"
    loaded = [first, *(match_categories(first.categories, o, known_by=known_by) for o in others)]
    for each in loaded:
        each.summary.require_complete(strict=strict)
    return loaded


@dataclass(frozen=True)
class ShardsMade:
    """What `precompute_shards` made, and of which data."""

    count: int
    data: tuple[SplitSummary, ...]
    """Of the whole splits; images whose pixels can't be read are found with the shards."""


def precompute_shards(
    data: Path,
    out: Path,
    config: RunConfig,
    shards: EveryNth,
    *,
    splits: tuple[str, ...] = ("train", "val"),
    workers: Workers = Workers(),
    strict: bool = False,
) -> ShardsMade:
    """Make every n-th shard; `precompute` then finishes the store.

    The other arguments are those of `precompute`. Machines may share one folder `out`, or each
    writes its own and `precompute` gets all of them as `made`.
    """
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    loaded = load_splits(data, splits, strict=strict, config=_ANY_IMAGE)
    for coco in loaded:
        jobs = list(_jobs(coco, out, config))[shards.first - 1 :: shards.n]
        _run(jobs, workers, coco.split)
        count += len(jobs)
    return ShardsMade(count, tuple(coco.summary for coco in loaded))


@dataclass(frozen=True)
class _Job:
    path: Path
    records: Sequence[ImageRecord]
    images: Path
    """Folder of the image files."""
    config: RunConfig
    key: str

    @property
    def facts(self) -> dict[str, Any] | None:
        """The facts in the finished shard; None while it is not made."""
        return shard_facts(self.path, self.key)


@dataclass
class _Facts:
    """Sums over a shard's images."""

    images: list[int] = field(default_factory=list)
    """Ids of the images with labels."""
    instances: int = 0
    positives: int = 0
    without_positive: int = 0
    annotations: int = 0
    """Crowd regions and specks included."""
    crowds: int = 0
    iou_of_category: dict[str, float] = field(default_factory=dict)
    """Sum of mask IoU by category index; JSON needs keys of text."""
    count_of_category: dict[str, int] = field(default_factory=dict)
    worst: list[tuple[float, str, int]] = field(default_factory=list)
    problems: list[tuple[Any, ...]] = field(default_factory=list)
    """Fields of each `Problem`."""

    def add(self, other: "_Facts") -> None:
        self.images += other.images
        self.instances += other.instances
        self.positives += other.positives
        self.without_positive += other.without_positive
        self.annotations += other.annotations
        self.crowds += other.crowds
        for category, count in other.count_of_category.items():
            total = self.iou_of_category.get(category, 0.0) + other.iou_of_category[category]
            self.iou_of_category[category] = total
            self.count_of_category[category] = self.count_of_category.get(category, 0) + count
        worst = [*self.worst, *((iou, name, number) for iou, name, number in other.worst)]
        self.worst = nsmallest(_NUM_WORST, worst)
        self.problems += other.problems


def _jobs(coco: CocoData, out: Path, config: RunConfig) -> Iterator[_Job]:
    identity = {
        "format": FORMAT.version,
        "data": data_hash(coco.root, coco.split),
        "settings": label_settings(config),
    }
    for number, first in enumerate(range(0, len(coco.images), SHARD_IMAGES)):
        records = coco.images[first : first + SHARD_IMAGES]
        # Sizes of the files, too: a repaired or a truncated image must not hide in an old shard.
        sizes = [(record.id, coco.image_path(record).stat().st_size) for record in records]
        described = json.dumps([identity, sizes], sort_keys=True)
        key = hashlib.sha256(described.encode()).hexdigest()
        path = out / f"{coco.split}-{number:05d}.safetensors"
        yield _Job(path, records, coco.root / "images", config, key)


def _take(job: _Job, folders: Sequence[Path]) -> None:
    """Copy a job's shard from a folder that has it whole."""
    for folder in folders:
        if job.facts is None and shard_facts(folder / job.path.name, job.key) is not None:
            with atomic_path(job.path) as temporary:
                temporary.write_bytes((folder / job.path.name).read_bytes())


def _run(jobs: Sequence[_Job], workers: Workers, split: str) -> None:
    """Make the shards that are not there yet."""
    pending = [job for job in jobs if job.facts is None]
    done = len(jobs) - len(pending)
    with progress_bar(
        total=len(jobs), initial=done, desc=f"labels {split}", unit="shard", delay=0
    ) as bar:
        for _ in _made(pending, workers):
            bar.update()


def _made(jobs: Sequence[_Job], workers: Workers) -> Iterable[None]:
    if not workers.processes:
        for job in jobs:
            _write(job, workers.device)
            yield
        return
    context = get_context("spawn")  # fork would copy torch's thread pools, which then hang
    devices = context.SimpleQueue()
    gpus = torch.cuda.device_count() or 1
    for number in range(workers.processes):
        devices.put(f"cuda:{number % gpus}" if workers.device == "cuda" else workers.device)
    with ProcessPoolExecutor(workers.processes, context, _start_worker, (devices,)) as pool:
        with no_interrupts_in_children():
            made = pool.map(_write_in_worker, jobs)
        yield from made


_device_of_worker: str | None = None


def _start_worker(devices: "SimpleQueue[str | None]") -> None:
    global _device_of_worker
    end_with_parent()
    torch.set_num_threads(1)
    _device_of_worker = devices.get()


def _write_in_worker(job: _Job) -> None:
    _write(job, _device_of_worker)


def _write(job: _Job, device: str | None) -> None:
    facts, whole = _Facts(), []
    checks = ImageChecks(_ANY_IMAGE, pixels=True)
    for record in job.records:
        found = checks.check(job.images / record.file_name, *record.where_and_hw)
        # What is kept was noted when the annotations were read.
        problem = next((each for each in found if not each.kept), None)
        if problem is None:
            whole.append(record)
        else:
            facts.problems.append(astuple(problem))
    made = []
    # Images in crops may hold many thousand objects each, and their labels are made crop by crop.
    groups = [[record] for record in whole] if job.config.input.crop else [whole]
    for records in groups:
        labelled = label_images(records, job.config, device)
        for record, labels in zip(records, labelled, strict=True):
            facts.add(_facts_of(record, labels))
            made.append(labels.without_locations() if job.config.input.crop else labels)
    write_shard(job.path, made, job.key, asdict(facts))


def _facts_of(record: ImageRecord, labels: ImageLabels) -> _Facts:
    iou_G = labels.iou_G.astype(np.float16).astype(float)  # as stored
    count: Counter[str] = Counter(map(str, labels.category_G.tolist()))
    return _Facts(
        images=[record.id],
        instances=len(iou_G),
        positives=len(labels.object_P),
        without_positive=len(iou_G) - len(np.unique(labels.object_P)),
        annotations=len(record.annotations),
        crowds=sum(annotation.crowd for annotation in record.annotations),
        iou_of_category={c: float(iou_G[labels.category_G == int(c)].sum()) for c in count},
        count_of_category=dict(count),
        worst=[
            (iou, record.file_name, annotation)
            for iou, annotation in zip(iou_G.tolist(), labels.annotation_G.tolist(), strict=True)
        ],
    )


def _gather(coco: CocoData, jobs: Sequence[_Job], data: str, *, strict: bool) -> dict[str, Any]:
    """Return a split's entry of the index."""
    total, shards = _Facts(), []
    for job in jobs:
        facts = _Facts(**(job.facts or {}))
        total.add(facts)
        shards.append(
            {"file": job.path.name, "sha256": sha256_of_file(job.path), "images": facts.images}
        )
    place = str(annotation_file(coco.root, coco.split))
    used = replace(
        coco.summary.plus(Problem(*each) for each in total.problems),
        images=len(total.images),
        objects=total.annotations - total.crowds,
        crowds=total.crowds,
    )
    if not total.images:
        raise DataError(
            f"{place}: no usable image is left; repair the data. " + "; ".join(used.lines())
        )
    used.require_complete(strict=strict)
    names = category_labels(coco.categories)
    categories = sorted(total.count_of_category, key=int)
    summary = LabelSummary(
        images=len(total.images),
        instances=total.instances,
        positives=total.positives,
        without_positive=total.without_positive,
        ignored=total.annotations - total.instances,
        per_category_iou={
            names[int(c)]: total.iou_of_category[c] / total.count_of_category[c] for c in categories
        },
        per_category_instances={names[int(c)]: total.count_of_category[c] for c in categories},
        worst=tuple((name, number, iou) for iou, name, number in total.worst),
    )
    summary.require_learnable(place)
    return {
        "shards": shards,
        "data_hash": data,
        "summary": asdict(summary),
        "data": used.to_json(),
    }
