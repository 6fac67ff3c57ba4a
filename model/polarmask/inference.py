"""Predictor: a model folder made ready to answer. All that evaluation and serving need.

Dimension key
    N: instances    K: further parts of an instance    S: shapes: instances and further parts
    R: rays    2: (x, y) in pixels of the given image
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from polarmask.device import find_device
from polarmask.masks import RASTERS, Raster, Rle, united
from polarmask.model_folder import ModelCard, load_model
from polarmask.postprocess import RawInstances, postprocess
from polarmask.preprocess import canvas_hw, normalise, resize, to_canvas


@dataclass(frozen=True, eq=False)
class Instances:
    """What was found in one image, best score first, in pixels of the image as given.

    Attributes:
        image_hw: Rows and columns of the image.
        polygons: (N, R, 2) float32, vertices in ray order (clockwise from +x), clipped; of an
            instance in several parts the best one.
        boxes_xywh: (N, 4) float32, left, top, width, height.
        scores: (N,) float32 in [0, 1].
        category_ids: (N,) int64, ids of the data's categories.
        category_names: One name per instance.
        centers: (N, 2) float32, where the rays start.
        ray_lengths: (N, R) float32, in pixels of the network's input.
        further_parts: (K, R, 2) float32 by row, for instances with more parts than `polygons` has.
        raster: How polygons become masks.
    """

    image_hw: tuple[int, int]
    polygons: NDArray[np.float32]
    boxes_xywh: NDArray[np.float32]
    scores: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    centers: NDArray[np.float32]
    ray_lengths: NDArray[np.float32]
    further_parts: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    raster: Raster = "exact"

    def __len__(self) -> int:
        return len(self.scores)

    def parts(self, row: int) -> list[NDArray[np.float32]]:
        """Return all polygons (R, 2) of one instance, the best first."""
        return [self.polygons[row], *self.further_parts.get(row, ())]

    def rle(self) -> list[Rle]:
        """Return each instance's mask as compressed COCO RLE: the union of its polygons."""
        return list(self._masks)

    @cached_property
    def _masks(self) -> list[Rle]:
        """Travels with the instances: who is sent them need not rasterise anew."""
        rasterise = RASTERS[self.raster]
        masks = rasterise(self.polygons, self.image_hw)
        for row, parts in self.further_parts.items():
            masks[row] = united([masks[row], *rasterise(parts, self.image_hw)])
        return masks


class Predictor:
    """Answers for one model; not bound to files or threads once loaded."""

    def __init__(self, detector: torch.nn.Module, card: ModelCard, device: torch.device) -> None:
        self.card = card
        self._detector = detector
        self._device = device

    @classmethod
    def load(
        cls, model: Path, *, device: str | torch.device | None = "cpu", threads: int | None = None
    ) -> "Predictor":
        """Load a model folder.

        Args:
            model: Folder written by `polarmask train`.
            device: "cpu" or "cuda"; None takes CUDA where there is one.
            threads: CPU threads of the whole process; None leaves torch's choice.

        Raises:
            ModelFormatError: The folder can't be used.
            ConfigError: CUDA is asked for and not there.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        own = find_device(device)
        detector, card = load_model(model, device=own)
        return cls(detector, card, own)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[Instances]:
        """Find instances in a batch.

        Args:
            images: Each (H, W, 3) uint8 RGB; sizes may differ.

        Raises:
            ValueError: An image of another shape or type.
        """
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        if not images:
            return []
        config = self.card.config
        resized = [resize(image, config.input) for image in images]
        sizes = [
            canvas_hw(image.shape[:2], config.model.strides, config.input.multiple)
            for image in resized
        ]
        hw = (max(size[0] for size in sizes), max(size[1] for size in sizes))
        canvas = np.stack([to_canvas(image, hw, config.input) for image in resized])
        with torch.inference_mode():
            batch = normalise(torch.from_numpy(canvas).to(self._device), config.input)
            found = postprocess(
                self._detector(batch),
                [(image.shape[0], image.shape[1]) for image in resized],
                strides=config.model.strides,
                config=config.postprocess,
                parts=config.labels.parts,
                given_hws=[(image.shape[0], image.shape[1]) for image in images],
            )
        return [
            self._in_image(raw, image.shape[:2], small.shape[:2])
            for raw, image, small in zip(found, images, resized, strict=True)
        ]

    def _in_image(
        self, raw: RawInstances, image_hw: tuple[int, int], resized_hw: tuple[int, int]
    ) -> Instances:
        scale_2 = np.array(
            [resized_hw[1] / image_hw[1], resized_hw[0] / image_hw[0]], dtype=np.float32
        )
        shapes = {name: value.cpu().numpy() for name, value in vars(raw).items()}
        polygon_SR2 = shapes["polygon_NR2"] / scale_2
        # Of the shapes of an instance the first is the best; the others are its further parts.
        first_N = np.flatnonzero(np.diff(shapes["instance_N"], prepend=-1))
        after_N = np.append(first_N, len(polygon_SR2))[1:]
        box_N4 = shapes["box_N4"][first_N]
        corner_N2, far_N2 = box_N4[:, :2] / scale_2, box_N4[:, 2:] / scale_2
        as_original = self.card.config.postprocess.score == "original"
        size_N2 = far_N2 - corner_N2 + (1 if as_original else 0)  # its boxes hold their last pixel
        categories = [self.card.categories[index] for index in shapes["category_N"][first_N]]
        return Instances(
            image_hw=(image_hw[0], image_hw[1]),
            polygons=polygon_SR2[first_N],
            boxes_xywh=np.concatenate([corner_N2, size_N2], axis=1),
            scores=shapes["score_N"][first_N],
            category_ids=np.array([category.id for category in categories], dtype=np.int64),
            category_names=tuple(category.name for category in categories),
            centers=shapes["center_N2"][first_N] / scale_2,
            ray_lengths=shapes["ray_NR"][first_N],
            further_parts={
                row: polygon_SR2[first + 1 : after]
                for row, (first, after) in enumerate(zip(first_N, after_N, strict=True))
                if after > first + 1
            },
            raster="whole_pixels" if as_original else "exact",
        )
