"""Batches of training images and their labels, in an order that depends on seed and step only.

The images of a step, and how each is mirrored and cropped, follow from (seed, epoch, image). So a
resumed run, more loader workers or another number of processes get the same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData
from polarmask.data.crop import Region, count_crops, cropped, regions_of
from polarmask.data.labels import ImageLabels, apply_to_labels
from polarmask.data.pixel_files import PixelFiles
from polarmask.data.preprocess import canvas_hw, crop_hw, resize, resized_hw, to_canvas
from polarmask.geometry.symmetry import Symmetry, apply_to_image, draw_symmetry
from polarmask.labels.image_labels import label_view
from polarmask.labels.store import LabelStore
from polarmask.network.losses import Targets
from polarmask.system.distributed import (
    barrier,
    is_first,
    local_rank,
    local_world_size,
    once_per_machine,
    rank,
    world_size,
)
from polarmask.system.progress_bar import progress_bar
from polarmask.system.signals import ignore_signals


class EpochImage(NamedTuple):
    """An image, or a region of one in a run with crops, by its index, in one epoch."""

    epoch: int
    image: int


class SampleKey(NamedTuple):
    """What the sampler asks the data set for: an image and the canvas to put it on."""

    source: EpochImage
    canvas_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a batch: canvas (H, W, 3) uint8 RGB and its labels."""

    image: NDArray[np.uint8]
    labels: ImageLabels
    file_name: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (B, H, W, 3) uint8 RGB, their targets, and their ids and file names."""

    image_BHW3: Tensor
    targets: Targets
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory; the loader calls this."""
        targets = {name: value.pin_memory() for name, value in vars(self.targets).items()}
        return replace(self, image_BHW3=self.image_BHW3.pin_memory(), targets=Targets(**targets))


class TrainingImages(Dataset[Sample]):
    """All images of a split that have labels, or their crops; those without objects are background.

    A run with `input.crop` has an entry for each region of an image.
    """

    def __init__(
        self, coco: CocoData, store: LabelStore, config: RunConfig, *, pixels: Path | None = None
    ) -> None:
        """Read images and labels; in a run with `input.crop`, all processes do it together.

        Args:
            coco: The split.
            store: Labels of its images.
            config: Of the run.
            pixels: Folder for uncompressed copies of images that are read in crops; None decodes
                an image for each crop.
        """
        self.records = coco.images
        self.labels = store
        self._coco = coco
        self._config = config
        self._regions = (
            once_per_machine(lambda: regions_of(coco.images, config.input))
            if config.input.crop
            else None
        )
        self._pixels = PixelFiles(pixels if config.input.crop else None, config.input)

    def __len__(self) -> int:
        return len(self.records if self._regions is None else self._regions.on_disk)

    def _region(self, index: int) -> Region:
        if self._regions is None:
            return Region.whole(self.records[index])
        return self._regions.on_disk[index]

    def _crop_hw(self, index: int) -> tuple[int, int]:
        if self._regions is None:
            return self._region(index).crop_hw
        rows, columns = self._regions.crop_hw_N2[index].tolist()
        return rows, columns

    @cached_property
    def longest_side(self) -> int:
        """Longer side of the largest image or crop in pixels."""
        return max(
            max(crop_hw((record.height, record.width), self._config.input))
            for record in self.records
        )

    def copy_pixels(self) -> None:
        """Copy the images of which an epoch takes several crops; all processes do it together."""
        if self._regions is None:
            return
        names = [
            record.file_name
            for record in self.records
            if count_crops((record.height, record.width), self._config.input) > 1
        ]
        # The second time only what is not there: processes on other machines have other folders.
        of_all = names[rank() :: world_size()]
        of_machine = names[local_rank() :: local_world_size()]
        for own in (of_all, of_machine):
            for name in progress_bar(own, desc="copying pixels", unit="image", shown=is_first()):
                self._pixels.copy(self._coco.root / "images" / name)
            barrier()

    def view(self, source: EpochImage) -> tuple[RunConfig, Symmetry]:
        """Return the run at this epoch's input size, and how the image is mirrored and turned."""
        config = self._config
        rng = np.random.default_rng((config.seed, *source))
        symmetry = draw_symmetry(config.augment, rng)
        if config.input.train_short_sides is None:
            return config, symmetry
        low, high = config.input.train_short_sides
        short_side = int(rng.integers(low, high, endpoint=True))
        return replace(config, input=replace(config.input, short_side=short_side)), symmetry

    def canvas_hw(self, source: EpochImage) -> tuple[int, int]:
        """Return the rows and columns that the image or crop needs in this epoch."""
        config, symmetry = self.view(source)
        rows, columns = self._canvas_hw(self._crop_hw(source.image), config)
        return (columns, rows) if symmetry.transpose else (rows, columns)

    def _canvas_hw(self, image_hw: tuple[int, int], config: RunConfig) -> tuple[int, int]:
        content_hw = resized_hw(image_hw, config.input)
        return canvas_hw(content_hw, config.model.strides, config.input.multiple)

    def __getitem__(self, key: SampleKey) -> Sample:
        region = self._region(key.source.image)
        config, symmetry = self.view(key.source)
        # One number more than `view` has, so that neither changes what the other draws.
        box = region.draw(np.random.default_rng((config.seed, *key.source, 1)))
        record = region.record if region.is_whole else cropped(region.record, box)
        if config.fresh_labels:
            labels = label_view(record, config, symmetry)
        else:
            stored = self.labels.read(self._coco.split, record.id)
            labels = apply_to_labels(stored, symmetry, config.model.strides)
        pixels = self._pixels.read(self._coco.image_path(record), box)
        image = resize(pixels, config.input)
        image = to_canvas(image, self._canvas_hw(region.crop_hw, config), config.input)
        image = to_canvas(apply_to_image(image, symmetry), key.canvas_hw, config.input)
        return Sample(image, labels, record.file_name)


class StepSampler(Sampler[list[SampleKey]]):
    """Batches for one process, from a given step on.

    Step t of all processes together takes images t * batch_size to (t + 1) * batch_size - 1 of the
    endless sequence of shuffled epochs; process r takes every world_size-th of them. All have the
    same canvas, across processes too: group norm sees the padding, so the padding must not depend
    on the split. With `passes`, a process gets its images of a step in that many equal batches.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        canvas_hw: Callable[[EpochImage], tuple[int, int]],
        *,
        seed: int,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
        passes: int = 1,
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._canvas_hw = canvas_hw
        self._seed = seed
        self._steps = steps
        self._rank = rank
        self._world_size = world_size
        self._passes = passes

    def __len__(self) -> int:
        return len(self._steps) * self._passes

    def __iter__(self) -> Iterator[list[SampleKey]]:
        batches = self._world_size * self._passes
        for step in self._steps:
            sources = [self._source(step * self._batch_size + n) for n in range(self._batch_size)]
            rows, columns = np.max([self._canvas_hw(source) for source in sources], axis=0).tolist()
            for first in range(self._rank, batches, self._world_size):
                yield [SampleKey(source, (rows, columns)) for source in sources[first::batches]]

    def _source(self, nth: int) -> EpochImage:
        """Return the n-th image of the endless sequence."""
        epoch, position = divmod(nth, self._num_images)
        return EpochImage(epoch, _shuffled(self._seed, epoch, self._num_images)[position])


@lru_cache(maxsize=2)  # a step spans two epochs at most, but for tiny data sets
def _shuffled(seed: int, epoch: int, num_images: int) -> list[int]:
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(num_images).tolist()
    return order


def load_steps(
    images: TrainingImages,
    config: RunConfig,
    steps: range,
    *,
    passes: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[tuple[Batch, ...]]:
    """Yield this process's batches of each step, `passes` of them.

    Args:
        images: Where samples come from.
        config: Batch size, seed and strides.
        steps: Optimiser steps to load.
        passes: Gradient-accumulation steps.
        workers: Loader processes; 0 loads in this process.
        pin_memory: Whether batches go to a GPU.
    """
    sampler = StepSampler(
        len(images),
        config.optim.batch_size,
        images.canvas_hw,
        seed=config.seed,
        steps=steps,
        rank=rank(),
        world_size=world_size(),
        passes=passes,
    )
    loader: DataLoader[Sample] = DataLoader(
        images,
        batch_sampler=sampler,
        collate_fn=partial(collate, config=config),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
    )
    batches = iter(loader)
    yield from zip(*[batches] * passes, strict=True)  # takes `passes` batches at a time


def collate(samples: Sequence[Sample], config: RunConfig) -> Batch:
    """Stack images of one canvas size, and concatenate their targets."""
    labels = [sample.labels for sample in samples]
    image_BHW3 = np.stack([sample.image for sample in samples])
    rows, columns = image_BHW3.shape[1:3]
    return Batch(
        torch.from_numpy(image_BHW3),
        _targets(labels, (rows, columns), config.model.strides),
        image_ids=tuple(each.image_id for each in labels),
        file_names=tuple(sample.file_name for sample in samples),
    )


def _targets(
    labels: Sequence[ImageLabels], canvas_hw: tuple[int, int], strides: tuple[int, ...]
) -> Targets:
    location_P3 = np.concatenate([each.location_P3 for each in labels])
    box_P4 = np.concatenate([each.box_G4[each.object_P] for each in labels])
    ignored_I3 = np.concatenate([each.ignored_I3 for each in labels])
    ignored_I2 = np.stack(
        [
            _image_index([each.ignored_I3 for each in labels]),
            _location_index(ignored_I3, canvas_hw, strides),
        ],
        axis=1,
    )
    return Targets(
        image_P=torch.from_numpy(_image_index([each.object_P for each in labels])),
        location_P=torch.from_numpy(_location_index(location_P3, canvas_hw, strides)),
        category_P=torch.from_numpy(
            np.concatenate([each.category_G[each.object_P] for each in labels])
        ),
        ray_PR=torch.from_numpy(np.concatenate([each.ray_PR for each in labels])),
        box_P4=torch.from_numpy(_side_distances(location_P3, box_P4, strides)).float(),
        ignored_I2=torch.from_numpy(ignored_I2),
    )


def _image_index(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return, for each row of the concatenated arrays, the index of its array."""
    return np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])


def _location_index(
    location_K3: NDArray[np.int64], canvas_hw: tuple[int, int], strides: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the index of (level, row, column) among all locations of a canvas, as (K,)."""
    level_hw = np.array([(canvas_hw[0] // stride, canvas_hw[1] // stride) for stride in strides])
    first_of_level = np.cumsum([0, *level_hw.prod(axis=1)])
    level_K, row_K, column_K = location_K3.T
    return np.asarray(first_of_level[level_K] + row_K * level_hw[level_K, 1] + column_K)


def _side_distances(
    location_P3: NDArray[np.int64], box_P4: NDArray[np.floating], strides: tuple[int, ...]
) -> NDArray[np.floating]:
    """Return the distances of locations from the left, top, right and bottom of their boxes."""
    point_P2 = (location_P3[:, [2, 1]] + 0.5) * np.array(strides)[location_P3[:, :1]]
    side_P4 = np.concatenate([point_P2 - box_P4[:, :2], box_P4[:, 2:] - point_P2], axis=1)
    return side_P4.clip(min=1e-3)  # a rescued location may lie outside its box
