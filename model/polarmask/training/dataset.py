"""Training images and their labels, in an order that depends on nothing but seed and step.

Which images a step sees, and how each is mirrored, follows from (seed, epoch, image) alone. So a
resumed run, more loader workers or another number of processes see the very same batches.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from polarmask.config.settings import RunConfig
from polarmask.data.coco import CocoData, ImageRecord
from polarmask.data.images import read_image
from polarmask.data.labels import ImageLabels, apply_to_labels
from polarmask.data.preprocess import canvas_hw, resize, resized_hw, to_canvas
from polarmask.geometry.symmetry import Symmetry, apply_to_image, draw_symmetry
from polarmask.labels.image_labels import label_view
from polarmask.labels.store import LabelStore
from polarmask.network.losses import Targets


class Place(NamedTuple):
    """Where an image stands in the endless sequence of epochs."""

    epoch: int
    image: int


class Request(NamedTuple):
    """An image and the canvas it has to fill."""

    place: Place
    canvas_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image of a batch: canvas (H, W, 3) uint8 RGB and its labels."""

    image: NDArray[np.uint8]
    labels: ImageLabels
    file_name: str


@dataclass(frozen=True, eq=False)
class Batch:
    """Images (B, H, W, 3) uint8 RGB, what they teach, and which they are."""

    image_BHW3: Tensor
    targets: Targets
    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """Return a copy that a GPU can fetch by itself; the loader calls this."""
        targets = {name: value.pin_memory() for name, value in vars(self.targets).items()}
        return replace(self, image_BHW3=self.image_BHW3.pin_memory(), targets=Targets(**targets))


class TrainingImages(Dataset[Sample]):
    """All usable images; one without objects teaches what background looks like."""

    def __init__(self, coco: CocoData, store: LabelStore, config: RunConfig) -> None:
        self.records = coco.only(set(store.image_ids(coco.split))).images
        self._coco = coco
        self._store = store
        self._config = config

    def __len__(self) -> int:
        return len(self.records)

    def view(self, place: Place) -> tuple[RunConfig, Symmetry]:
        """Return the run at that epoch's input size, and how the image is mirrored and turned."""
        config = self._config
        rng = np.random.default_rng((config.seed, *place))
        symmetry = draw_symmetry(config.augment, rng)
        if config.input.train_short_sides is None:
            return config, symmetry
        low, high = config.input.train_short_sides
        short_side = int(rng.integers(low, high, endpoint=True))
        return replace(config, input=replace(config.input, short_side=short_side)), symmetry

    def canvas_hw(self, place: Place) -> tuple[int, int]:
        """Return the rows and columns that the image needs in that epoch."""
        config, symmetry = self.view(place)
        rows, columns = self._canvas_hw(self.records[place.image], config)
        return (columns, rows) if symmetry.transpose else (rows, columns)

    def _canvas_hw(self, record: ImageRecord, config: RunConfig) -> tuple[int, int]:
        content_hw = resized_hw((record.height, record.width), config.input)
        return canvas_hw(content_hw, config.model.strides, config.input.multiple)

    def __getitem__(self, request: Request) -> Sample:
        record = self.records[request.place.image]
        config, symmetry = self.view(request.place)
        if config.fresh_labels:
            labels = label_view(record, config, symmetry)
        else:
            stored = self._store.read(self._coco.split, record.id)
            labels = apply_to_labels(stored, symmetry, config.model.strides)
        image = resize(read_image(self._coco.image_path(record)), config.input)
        image = to_canvas(image, self._canvas_hw(record, config), config.input)
        image = to_canvas(apply_to_image(image, symmetry), request.canvas_hw, config.input)
        return Sample(image, labels, record.file_name)


class StepSampler(Sampler[list[Request]]):
    """Batches for one process, from a given step on.

    Step t of all processes together takes images t * batch_size to (t + 1) * batch_size - 1 of the
    endless sequence of shuffled epochs; process r takes every world_size-th of them. All share one
    canvas, also across processes: group norm sees the padding, so it must not depend on the split.
    A process may take its share of a step in `passes` batches of equal size, one after the other.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        canvas_hw: Callable[[Place], tuple[int, int]],
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

    def __iter__(self) -> Iterator[list[Request]]:
        order_of_epoch: dict[int, list[int]] = {}
        for step in self._steps:
            batch = []
            for nth in range(step * self._batch_size, (step + 1) * self._batch_size):
                epoch, position = divmod(nth, self._num_images)
                if epoch not in order_of_epoch:
                    rng = np.random.default_rng((self._seed, epoch))
                    order_of_epoch[epoch] = rng.permutation(self._num_images).tolist()
                    order_of_epoch.pop(epoch - 2, None)
                batch.append(Place(epoch, order_of_epoch[epoch][position]))
            rows, columns = np.max([self._canvas_hw(place) for place in batch], axis=0).tolist()
            for number in range(self._passes):
                own = batch[
                    self._rank + number * self._world_size :: self._world_size * self._passes
                ]
                yield [Request(place, (rows, columns)) for place in own]


def collate(samples: Sequence[Sample], config: RunConfig) -> Batch:
    """Stack images of one canvas size and lay their targets flat."""
    strides = config.model.strides
    image_BHW3 = np.stack([sample.image for sample in samples])
    hw = image_BHW3.shape[1:3]
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
    return Batch(
        torch.from_numpy(image_BHW3),
        targets,
        image_ids=tuple(one.image_id for one in labels),
        file_names=tuple(sample.file_name for sample in samples),
    )


def _owner(arrays: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return for each row of the concatenation which array it came from."""
    return np.repeat(np.arange(len(arrays)), [len(array) for array in arrays])
