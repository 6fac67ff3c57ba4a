"""The predictor: images in, instances out. Evaluation and serving use nothing else of a model.

Dimension key
    N: instances    K: further parts of an instance    S: shapes: instances and further parts
    R: rays    2: (x, y) in pixels of the given image
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polarmask.data.images import Pixels
from polarmask.data.intensity import to_uint8, warn_of_unfitting_bits
from polarmask.data.preprocess import (
    canvas_hw,
    letterbox,
    letterbox_hw,
    normalise,
    resize,
    to_canvas,
)
from polarmask.engines.interface import Engine
from polarmask.engines.load import load_engine
from polarmask.geometry.rays import ray_directions
from polarmask.inference.instances import Instances
from polarmask.inference.model_folder import ModelCard, load_model
from polarmask.inference.stage_clock import StageClock
from polarmask.inference.tiles import TileSize, predict_tiled, tile_side
from polarmask.network.postprocess import RawInstances, postprocess
from polarmask.original.scores import score_rules
from polarmask.system.device import find_device

_DTYPES = ("uint8", "uint16", "int32", "float32")
"""Of images."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image resized for the network.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, resized and not yet padded.
        given_hw: Rows and columns of the given image, the pixels of which instances refer to.
    """

    pixels: NDArray[np.uint8]
    given_hw: tuple[int, int]


class Predictor:
    """Finds instances with one model; needs no files once loaded."""

    def __init__(
        self, engine: Engine, card: ModelCard, device: torch.device, *, tile: TileSize = None
    ) -> None:
        self.card = card
        self.engine = engine
        self._tile = tile
        self._device = device
        self._rules = score_rules(card.config.postprocess)

    @classmethod
    def load(
        cls,
        model: Path,
        *,
        device: str | torch.device | None = "cpu",
        threads: int | None = None,
        engine: str | None = None,
        tile: TileSize = None,
    ) -> "Predictor":
        """Load a model folder.

        Args:
            model: Folder written by `polarmask train`.
            device: "cpu" or "cuda"; None takes CUDA where there is one.
            threads: CPU threads of the whole process; None leaves torch's choice and gives
                engines other than torch's one.
            engine: What runs the network, see `polarmask.engines`; None takes the fastest that
                the folder's engine ranking admits, or the folded network without a ranking. One
                that can't run here is replaced by the folded network, with a warning.
            tile: Side in pixels of the tiles that `predict` cuts larger images into; `auto` cuts
                images that are much larger than the training images into tiles of their size.

        Raises:
            ModelFormatError: The folder can't be used.
            ConfigError: CUDA is wanted and not available, or there is no such engine.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        own = find_device(device)
        detector, card = load_model(model, device=own)
        runs = load_engine(model, detector, device=own, name=engine, threads=threads)
        return cls(runs, card, own, tile=tile)

    def max_instances(self, image_hw: tuple[int, int]) -> int | None:
        """Return how many instances an image of this size gets at most; None if it is tiled."""
        tiled = self.tile_side(image_hw) is not None  # and each tile gets that many
        return None if tiled else self.card.config.postprocess.max_instances

    def predict(
        self, images: Sequence[Pixels], *, clock: StageClock | None = None
    ) -> list[Instances]:
        """Find instances in a batch.

        Args:
            images: Each (H, W, 3) RGB, 0 to 255 as uint8, 0 to 65535 as uint16, or int32 and
                float32 for models whose `input.intensity` takes them; sizes may differ.
            clock: Adds up the seconds of the stages `network` and `decode_rays`.

        Raises:
            ValueError: An image of another shape or type.
            DataError: Values that the model's `input.intensity` does not take.
        """
        sides = [self.tile_side(image.shape[:2]) for image in images]
        whole = [image for image, side in zip(images, sides, strict=True) if side is None]
        found = iter(self.predict_prepared([self.prepare(each) for each in whole], clock=clock))
        find = partial(self._predict_tiles, clock=clock)
        return [
            next(found) if side is None else predict_tiled(find, self._in_8_bits(image), side)
            for image, side in zip(images, sides, strict=True)
        ]

    def tile_side(self, image_hw: tuple[int, int]) -> int | None:
        """Return the side in pixels of the tiles of an image of this size; None keeps it whole."""
        # A model that resizes whole images to a short side is given all of them at one scale.
        images = self.card.config.input
        one_scale = images.short_side is not None and not images.crop
        learned = 0 if one_scale else int(self.card.training.get("image_side", 0))
        return tile_side(image_hw, self._tile, learned or None)

    def _predict_tiles(
        self, tiles: Sequence[NDArray[np.uint8]], clock: StageClock | None
    ) -> list[Instances]:
        return self.predict_prepared([self._resized(tile) for tile in tiles], clock=clock)

    def prepare(self, image: Pixels) -> Prepared:
        """Bring an image to 8 bits and the network's size, so that the large one can be dropped.

        Raises:
            ValueError: An image of another shape or type than `predict` takes.
            DataError: Values that the model's `input.intensity` does not take.
        """
        return self._resized(self._in_8_bits(image))

    def _in_8_bits(self, image: Pixels) -> NDArray[np.uint8]:
        if str(image.dtype) not in _DTYPES or image.shape[2:] != (3,) or not image.size:
            raise ValueError(
                f"expected (H, W, 3) of {', '.join(_DTYPES)}; got {image.shape} {image.dtype}"
            )
        config = self.card.config.input
        warn_of_unfitting_bits(image, config)
        return to_uint8(image, config)

    def _resized(self, image: NDArray[np.uint8]) -> Prepared:
        rows, columns = image.shape[:2]
        return Prepared(resize(image, self.card.config.input), given_hw=(rows, columns))

    def predict_prepared(
        self, images: Sequence[Prepared], *, clock: StageClock | None = None
    ) -> list[Instances]:
        """Find instances in prepared images; see `predict`.

        Images with equal canvases go through the network together. A canvas depends on the size of
        its image alone, so an image's instances do not depend on its neighbours.
        """
        clock = clock or StageClock()
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            alike[self._canvas_hw(image)].append(index)
        found: dict[int, Instances] = {}
        for hw, indices in alike.items():
            group = [images[index] for index in indices]
            found.update(zip(indices, self._predict_alike(group, hw, clock), strict=True))
        return [found[index] for index in range(len(images))]

    def _predict_alike(
        self, images: Sequence[Prepared], hw: tuple[int, int], clock: StageClock
    ) -> list[Instances]:
        config = self.card.config
        resized_hws = [(image.pixels.shape[0], image.pixels.shape[1]) for image in images]
        with torch.inference_mode():
            with clock("network"):
                predictions = self.engine.run(self._batch(images, hw))
            with clock("decode_rays"):
                found = postprocess(
                    predictions,
                    resized_hws,
                    strides=config.model.strides,
                    config=config.postprocess,
                    parts=config.labels.parts,
                    given_hws=[image.given_hw for image in images],
                )
                return [
                    self._in_image(raw, image.given_hw, resized_hw)
                    for raw, image, resized_hw in zip(found, images, resized_hws, strict=True)
                ]

    def network_input(self, image: Pixels) -> Tensor:
        """Return the network's input for one image, (1, 3, rows, columns)."""
        prepared = self.prepare(image)
        return self._batch([prepared], self._canvas_hw(prepared))

    def _canvas_hw(self, image: Prepared) -> tuple[int, int]:
        fit = letterbox_hw if self._rules.is_padded_to_few_sizes else canvas_hw
        rows, columns = image.pixels.shape[:2]
        config = self.card.config
        return fit((rows, columns), config.model.strides, config.input.multiple)

    def _batch(self, images: Sequence[Prepared], hw: tuple[int, int]) -> Tensor:
        config = self.card.config
        if self._rules.is_padded_to_few_sizes:
            canvas = np.stack([letterbox(image.pixels, hw) for image in images])
        else:
            canvas = np.stack([to_canvas(image.pixels, hw, config.input) for image in images])
        return normalise(torch.from_numpy(canvas).to(self._device), config.input)

    def _in_image(
        self, raw: RawInstances, image_hw: tuple[int, int], resized_hw: tuple[int, int]
    ) -> Instances:
        scale_2 = np.array(
            [resized_hw[1] / image_hw[1], resized_hw[0] / image_hw[0]], dtype=np.float32
        )
        direction_R2 = ray_directions(raw.ray_NR.shape[1], like=torch.ones(1)).numpy()
        stretch_R = np.linalg.norm(direction_R2 / scale_2, axis=1)
        shapes = {name: value.cpu().numpy() for name, value in vars(raw).items()}
        polygon_SR2 = shapes["polygon_NR2"] / scale_2
        # Of the shapes of an instance the first is the best; the others are its further parts.
        first_N = np.flatnonzero(np.diff(shapes["instance_N"], prepend=-1))
        after_N = np.append(first_N, len(polygon_SR2))[1:]
        box_N4 = shapes["box_N4"][first_N]
        corner_N2, far_N2 = box_N4[:, :2] / scale_2, box_N4[:, 2:] / scale_2
        size_N2 = far_N2 - corner_N2 + self._rules.last_pixel
        categories = [self.card.categories[index] for index in shapes["category_N"][first_N]]
        return Instances(
            image_hw=(image_hw[0], image_hw[1]),
            polygons=polygon_SR2[first_N],
            boxes_xywh=np.concatenate([corner_N2, size_N2], axis=1),
            scores=shapes["score_N"][first_N],
            category_ids=np.array([category.id for category in categories], dtype=np.int64),
            category_names=tuple(category.name for category in categories),
            centers=shapes["center_N2"][first_N] / scale_2,
            ray_lengths=shapes["ray_NR"][first_N] * stretch_R,
            further_parts={
                row: polygon_SR2[first + 1 : after]
                for row, (first, after) in enumerate(zip(first_N, after_N, strict=True))
                if after > first + 1
            },
            raster=self._rules.raster,
        )
