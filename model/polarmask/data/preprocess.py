"""Image to network input: resize, pad to whole locations, normalise.

Training, evaluation and serving all use these functions, so they can't differ.
"""

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polarmask.config.input_settings import InputConfig


def resized_hw(image_hw: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    """Return rows and columns after resizing: short side as configured, long side bounded."""
    if not config.keep_ratio and config.short_side is not None:
        return config.short_side, config.max_side
    short, long = min(image_hw), max(image_hw)
    scale = 1.0 if config.short_side is None else config.short_side / short
    scale = min(scale, config.max_side / long)
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def crop_hw(image_hw: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    """Return rows and columns of what training sees of an image at once, before resizing."""
    if not config.crop:
        return image_hw
    return min(image_hw[0], config.crop), min(image_hw[1], config.crop)


def learned_hw(image_hw: tuple[int, int], config: InputConfig) -> tuple[int, int]:
    """Return rows and columns of a whole image at the scale that training sees it at.

    Without `crop` this is `resized_hw`.
    """
    seen_hw = crop_hw(image_hw, config)
    rows, columns = resized_hw(seen_hw, config)
    return (
        max(1, round(image_hw[0] * rows / seen_hw[0])),
        max(1, round(image_hw[1] * columns / seen_hw[1])),
    )


def input_scale(image_hw: tuple[int, int], config: InputConfig) -> NDArray[np.float64]:
    """Return pixels of the network's input per pixel of the image in training, (x, y)."""
    rows, columns = learned_hw(image_hw, config)
    return np.array([columns / image_hw[1], rows / image_hw[0]])


def canvas_hw(
    content_hw: tuple[int, int], strides: tuple[int, ...], multiple: int = 32
) -> tuple[int, int]:
    """Round rows and columns up to whole locations of every level and to `multiple`."""
    multiple = math.lcm(multiple, strides[-1])
    return -(-content_hw[0] // multiple) * multiple, -(-content_hw[1] // multiple) * multiple


LETTERBOX_STEP = 128
"""Sides of a served network's input are multiples of this, so that there are few shapes."""


def letterbox_hw(
    content_hw: tuple[int, int], strides: tuple[int, ...], multiple: int = 32
) -> tuple[int, int]:
    """Round rows and columns up to a few sizes, each with whole locations of every level."""
    return canvas_hw(content_hw, strides, math.lcm(multiple, LETTERBOX_STEP))


def letterbox(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Place an image top left on a canvas and pad it with its mirror image.

    A plain colour would move the averages that group norm takes over the whole canvas.
    """
    rows, columns = hw[0] - image.shape[0], hw[1] - image.shape[1]
    if rows == columns == 0:
        return image
    mirrored = cv2.copyMakeBorder(image, 0, rows, 0, columns, cv2.BORDER_REFLECT_101)
    return np.asarray(mirrored, dtype=np.uint8)


def resize(image: NDArray[np.uint8], config: InputConfig) -> NDArray[np.uint8]:
    """Resize an (H, W, 3) image; shrinking averages so that fine texture does not alias.

    Where the ratio is not kept one side may shrink and the other grow: that is interpolated, as
    in the original.
    """
    rows, columns = resized_hw(image.shape[:2], config)
    if (rows, columns) == image.shape[:2]:
        return image
    shrinks = config.keep_ratio and rows < image.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (columns, rows), interpolation=method), dtype=np.uint8)


def to_canvas(
    image: NDArray[np.uint8], hw: tuple[int, int], config: InputConfig
) -> NDArray[np.uint8]:
    """Place an image top left on a canvas of the mean colour, which normalises to about zero."""
    if image.shape[:2] == hw:
        return image
    canvas = np.empty((*hw, 3), dtype=np.uint8)
    canvas[:] = np.round(config.mean)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def normalise(image_BHW3: Tensor, config: InputConfig) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float, in channels-last memory, with one copy.

    The three channels come out in the order that the network was trained with.
    """
    mean_3 = torch.tensor(config.mean, device=image_BHW3.device)
    std_3 = torch.tensor(config.std, device=image_BHW3.device)
    normal_BHW3 = (image_BHW3 - mean_3) / std_3
    if config.channel_order == "bgr":
        normal_BHW3 = normal_BHW3.flip(-1)
    return normal_BHW3.permute(0, 3, 1, 2)
