"""Training images and their labels, in an order that depends on nothing but seed and step.

Which images a step sees, and how each is mirrored, follows from (seed, epoch, image) alone. So a
resumed run, more loader workers or another number of processes see the very same batches.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from polarmask.augment import apply_to_image, apply_to_labels, draw_symmetry
from polarmask.coco import CocoData, read_image
from polarmask.config import RunConfig
from polarmask.detector import Targets
from polarmask.label_store import ImageLabels, LabelStore
from polarmask.preprocess import resize, to_canvas


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a batch: canvas (H, W, 3) uint8 RGB and its labels."""

    image: NDArray[np.uint8]
    labels: ImageLabels


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (B, H, W, 3) uint8 RGB, what they teach, and which they are."""

    image_BHW3: Tensor
    targets: Targets
    image_ids: tuple[int, ...]


class TrainingImages(Dataset[Sample]):
    """Images with at least one object; an item is asked for by (epoch, index)."""

    def __init__(self, coco: CocoData, store: LabelStore, config: RunConfig) -> None:
        labelled = set(store.image_ids(coco.split))
        self.records = [
            record
            for record in coco.images
            if record.id in labelled and any(a.parts for a in record.annotations)
        ]
        self._coco = coco
        self._store = store
        self._config = config

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        record, config = self.records[index], self._config
        labels = self._store.read(self._coco.split, record.id)
        image = resize(read_image(self._coco.image_path(record)), config.input)
        image = to_canvas(image, labels.canvas_hw, config.input)
        rng = np.random.default_rng((config.seed, epoch, index))
        symmetry = draw_symmetry(config.augment, rng)
        return Sample(
            apply_to_image(image, symmetry),
            apply_to_labels(labels, symmetry, config.model.strides),
        )


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for one process, from a given step on.

    Step t of all processes together takes places t * batch_size to (t + 1) * batch_size - 1 of the
    endless sequence of shuffled epochs; process r takes every world_size-th of them.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._num_images = num_images
        self._batch_size = batch_size
        self._seed = seed
        self._steps = steps
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_of_epoch: dict[int, list[int]] = {}
        for step in self._steps:
            first = step * self._batch_size
            batch = []
            for place in range(first + self._rank, first + self._batch_size, self._world_size):
                epoch, nth = divmod(place, self._num_images)
                if epoch not in order_of_epoch:
                    rng = np.random.default_rng((self._seed, epoch))
                    order_of_epoch[epoch] = rng.permutation(self._num_images).tolist()
                    order_of_epoch.pop(epoch - 2, None)
                batch.append((epoch, order_of_epoch[epoch][nth]))
            yield batch


def collate(samples: Sequence[Sample], config: RunConfig) -> Batch:
    """Pad canvases to a common size and lay targets flat."""
    strides = config.model.strides
    hw = tuple(np.max([sample.image.shape[:2] for sample in samples], axis=0).tolist())
    image_BHW3 = np.stack([to_canvas(s.image, (hw[0], hw[1]), config.input) for s in samples])
    level_hw = np.array([(hw[0] // stride, hw[1] // stride) for stride in strides])
    first_of_level = np.cumsum([0, *level_hw.prod(axis=1)])

    def flat(location_K3: NDArray[np.int64]) -> NDArray[np.int64]:
        level, row, column = location_K3.T
        return np.asarray(first_of_level[level] + row * level_hw[level, 1] + column)

    labels = [sample.labels for sample in samples]
    location_P3 = np.concatenate([one.location_P3 for one in labels])
    point_P2 = (location_P3[:, [2, 1]] + 0.5) * np.array(strides)[location_P3[:, :1]]
    box_P4 = np.concatenate([one.box_G4[one.object_P] for one in labels])
    side_P4 = np.concatenate([point_P2 - box_P4[:, :2], box_P4[:, 2:] - point_P2], axis=1)
    ignored_I3 = np.concatenate([one.ignored_I3 for one in labels])
    ignored_I2 = np.stack([_owner([one.ignored_I3 for one in labels]), flat(ignored_I3)], axis=1)
    targets = Targets(
        image_P=torch.from_numpy(_owner([one.object_P for one in labels])),
        location_P=torch.from_numpy(flat(location_P3)),
        category_P=torch.from_numpy(np.concatenate([o.category_G[o.object_P] for o in labels])),
        ray_PR=torch.from_numpy(np.concatenate([one.ray_PR for one in labels])),
        # A rescued location may lie outside its box; a distance below zero is no box.
        box_P4=torch.from_numpy(side_P4).float().clamp(min=1e-3),
        ignored_I2=torch.from_numpy(ignored_I2),
    )
    ids = tuple(one.image_id for one in labels)
    return Batch(torch.from_numpy(image_BHW3), targets, ids)


def _owner(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return for each row of the concatenation which array it came from."""
    return np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
