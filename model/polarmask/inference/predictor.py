"""The predictor: images in, instances out. Evaluation and serving use nothing else of a model.

Dimension key
    N: instances    K: further parts of an instance    S: shapes: instances and further parts
    R: rays    2: (x, y) in pixels of the given image
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    learned_hw,
    letterbox,
    letterbox_hw,
    normalise,
    resize,
    resized_hw,
    to_canvas,
)
from polarmask.data.summary import describe_cut
from polarmask.engines.interface import Engine
from polarmask.engines.load import load_engine
from polarmask.geometry.rays import ray_directions
from polarmask.inference.instances import Instances
from polarmask.inference.model_folder import ModelCard, load_model
from polarmask.inference.stage_clock import StageClock
from polarmask.inference.tiles import TileSize, predict_tiled, tile_boxes, tile_side
from polarmask.network.postprocess import RawInstances, postprocess
from polarmask.original.scores import score_rules
from polarmask.system.device import find_device

_DTYPES = ("uint8", "uint16", "int32", "float32")
"""Of images."""
_MUCH_SMALLER = 1.25
"""An image may be shrunk by so much more than the training images without a warning."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image resized for the network, or a large one that is going to be cut into tiles.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, resized and not yet padded; with tiles in the given size.
        given_hw: Rows and columns of the given image, the pixels of which instances refer to.
        tile: Side of its tiles in pixels; None for an image that stays whole.
    """

    pixels: NDArray[np.uint8]
    given_hw: tuple[int, int]
    tile: int | None = None


class Predictor:
    """Finds instances with one model; needs no files once loaded."""

    def __init__(
        self,
        engine: Engine,
        card: ModelCard,
        device: torch.device,
        *,
        tile: TileSize = "auto",
        most_in_tiles: int | None = None,
    ) -> None:
        self.card = card
        self.engine = engine
        self._tile = tile
        self._most_in_tiles = most_in_tiles
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
        tile: TileSize = "auto",
        most_in_tiles: int | None = None,
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
            tile: Side in pixels of the tiles that larger images are cut into; `auto` cuts images
                that are much larger than the training images into tiles of their size; None cuts
                none.
            most_in_tiles: Instances that the tiles of one image may have together, the best ones;
                None keeps all, each tile up to `postprocess.max_instances`.

        Raises:
            ModelFormatError: The folder can't be used.
            ConfigError: CUDA is wanted and not available, or there is no such engine.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        own = find_device(device)
        detector, card = load_model(model, device=own)
        runs = load_engine(model, detector, device=own, name=engine, threads=threads)
        return cls(runs, card, own, tile=tile, most_in_tiles=most_in_tiles)

    def find(self, image: Pixels, min_score: float | None = None) -> Instances:
        """Find the instances of one image that score enough to be shown; see `predict`.

        Args:
            image: As for `predict`.
            min_score: Lowest score, in [0, 1]; None takes the model's own.
        """
        return self.shown(self.predict([image])[0], min_score)

    def shown(self, found: Instances, min_score: float | None = None) -> Instances:
        """Return the instances with this score or more, and why there may be more of them."""
        least = self.card.min_score if min_score is None else min_score
        warnings = dict(found.warnings)
        if 0 < found.cut_below >= least:
            warnings["results_cut"] = describe_cut(self.card.config.postprocess.max_instances)
            if self._most_in_tiles is not None and self.tile_side(found.image_hw) is not None:
                warnings["results_cut"] += f", or over {self._most_in_tiles:,} in tiles; send parts"
        return replace(found[found.scores >= least], min_score=least, warnings=warnings)

    def predict(
        self, images: Sequence[Pixels], *, clock: StageClock | None = None
    ) -> list[Instances]:
        """Find instances in a batch, down to the lowest scores: those that mask AP counts.

        Args:
            images: Each (H, W, 3) RGB, 0 to 255 as uint8, 0 to 65535 as uint16, or int32 and
                float32 for models whose `input.intensity` takes them; sizes may differ.
            clock: Adds up the seconds of the stages `network` and `decode_rays`.

        Raises:
            ValueError: An image of another shape or type.
            DataError: Values that the model's `input.intensity` does not take.
            TimeoutError: The clock's limit is passed.
        """
        return self.predict_prepared([self.prepare(image) for image in images], clock=clock)

    def tile_side(self, image_hw: tuple[int, int]) -> int | None:
        """Return the side in pixels of the tiles of an image of this size; None keeps it whole."""
        images = self.card.config.input
        # A model that resizes whole images to a short side is given all of them at one scale.
        one_scale = images.short_side is not None and not images.crop
        # A crop shows how large objects are at their own scale, at which no whole image may fit.
        other_scale = learned_hw(image_hw, images) != resized_hw(image_hw, images)
        learned = None if one_scale else self._learned_side or None
        return tile_side(image_hw, self._tile, learned, must=other_scale)

    @property
    def _learned_side(self) -> int:
        """Longer side in pixels of the largest training image or crop; 0 if it is not known."""
        return int(self.card.training.get("image_side", 0)) or self.card.config.input.crop

    def tiled_pixels(self, image_hw: tuple[int, int]) -> int:
        """Return how many pixels the network sees of an image in tiles; 0 if it stays whole."""
        side = self.tile_side(image_hw)
        if side is None:
            return 0
        boxes = tile_boxes(image_hw, side)
        x0, y0, x1, y1 = boxes[0]
        rows, columns = self._canvas_hw(resized_hw((y1 - y0, x1 - x0), self.card.config.input))
        return len(boxes) * rows * columns

    def prepare(self, image: Pixels, *, in_tiles: bool = True) -> Prepared:
        """Bring an image to 8 bits and the network's size, so that the large one can be dropped.

        Args:
            image: As for `predict`.
            in_tiles: False shrinks an image that would be cut into tiles.

        Raises:
            ValueError: An image of another shape or type than `predict` takes.
            DataError: Values that the model's `input.intensity` does not take.
        """
        pixels = self._in_8_bits(image)
        rows, columns = pixels.shape[:2]
        side = self.tile_side((rows, columns)) if in_tiles else None
        return self._resized(pixels) if side is None else Prepared(pixels, (rows, columns), side)

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

        Whole images with equal canvases go through the network together. A canvas depends on the
        size of its image alone, so an image's instances do not depend on its neighbours.
        """
        clock = clock or StageClock()
        alike: dict[tuple[int, int], list[int]] = defaultdict(list)
        found: dict[int, Instances] = {}
        find = partial(self._predict_tiles, clock=clock)
        for index, image in enumerate(images):
            if image.tile is None:
                rows, columns = image.pixels.shape[:2]
                alike[self._canvas_hw((rows, columns))].append(index)
            else:
                found[index] = predict_tiled(
                    find, image.pixels, image.tile, most=self._most_in_tiles, clock=clock
                )
        for hw, indices in alike.items():
            group = [images[index] for index in indices]
            found.update(zip(indices, self._predict_alike(group, hw, clock), strict=True))
        return [found[index] for index in range(len(images))]

    def _predict_tiles(
        self, tiles: Sequence[NDArray[np.uint8]], clock: StageClock
    ) -> list[Instances]:
        return self.predict_prepared([self._resized(tile) for tile in tiles], clock=clock)

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
        """Return the network's input for one image or its first tile, (1, 3, rows, columns)."""
        prepared = self.prepare(image)
        if prepared.tile is not None:
            x0, y0, x1, y1 = tile_boxes(prepared.given_hw, prepared.tile)[0]
            prepared = self._resized(prepared.pixels[y0:y1, x0:x1])
        rows, columns = prepared.pixels.shape[:2]
        return self._batch([prepared], self._canvas_hw((rows, columns)))

    def _canvas_hw(self, content_hw: tuple[int, int]) -> tuple[int, int]:
        fit = letterbox_hw if self._rules.is_padded_to_few_sizes else canvas_hw
        config = self.card.config
        return fit(content_hw, config.model.strides, config.input.multiple)

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
        score_N = shapes["score_N"][first_N]
        is_full = len(score_N) >= self.card.config.postprocess.max_instances
        return Instances(
            image_hw=(image_hw[0], image_hw[1]),
            polygons=polygon_SR2[first_N],
            boxes_xywh=np.concatenate([corner_N2, size_N2], axis=1),
            scores=score_N,
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
            cut_below=float(score_N.min()) if is_full else 0.0,
            warnings=self._warn_of_size(image_hw, resized_hw),
        )

    def _warn_of_size(
        self, image_hw: tuple[int, int], resized_hw: tuple[int, int]
    ) -> dict[str, str]:
        """Return a warning for an image that is shrunk much more than the training images were."""
        config, learned = self.card.config, self._learned_side
        usual = config.input.max_side / learned if learned else 0.0
        if config.input.short_side is not None and not config.input.crop:
            usual = config.input.short_side / min(image_hw) if config.input.keep_ratio else 0.0
        scale = max(resized_hw) / max(image_hw)
        if scale * _MUCH_SMALLER >= min(usual, 1.0):
            return {}
        return {
            "shrunk": f"shrunk to {resized_hw[1]} x {resized_hw[0]} pixels, far below the scale of "
            f"the training images: objects under {config.model.strides[0] / scale:.0f} pixels are "
            "lost; cut the image into tiles"
        }
