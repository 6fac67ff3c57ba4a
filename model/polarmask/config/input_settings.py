"""How an image becomes the network's input: section `input` of a run's settings."""

from dataclasses import dataclass
from typing import Literal

from polarmask.config.validation import FINITE, limit, require


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How an image becomes the network's input, in training and in serving alike."""

    __pydantic_config__ = FINITE

    short_side: int | None = 768
    """Shorter image side after resizing, in pixels; None keeps the size."""
    max_side: int = 1280
    """Upper limit of the longer image side after resizing, in pixels."""
    keep_ratio: bool = True
    """If false, every image becomes `max_side` wide and `short_side` high, as in the original."""
    crop: int = 0
    """Side in pixels of the square crops that training takes of larger images, before it resizes
    them; an epoch has as many as cover the image. Predictions then cut such images into tiles of
    that size. 0 takes whole images."""
    train_short_sides: tuple[int, int] | None = None
    """Range that training draws the short side from, ends included; None trains at one size."""
    multiple: int = 32
    """Padded sides are multiples of this and of the coarsest stride, in pixels."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """What the network sees; `bgr` for backbones that come from Caffe."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """RGB whatever the channel order, on a scale of 0 to 255."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """RGB whatever the channel order, on a scale of 0 to 255."""
    intensity: Literal["as_is", "bit_depth", "percentile"] = "as_is"
    """How values become 0 to 255: `as_is` takes the upper 8 of 16 bits; `bit_depth` the upper 8 of
    those in use; `percentile` stretches each channel of an image from its 1st to its 99.8th
    percentile, as microscopy does, and takes floating point values, too."""
    bits: int = 16
    """Bits in use of files with more than 8 bits per channel, 8 to 16. Used by `bit_depth` only."""
    max_pixels: int = 250_000_000
    """Images with more pixels are left out, before they are decoded."""

    def __post_init__(self) -> None:
        """Reject sizes that leave no image or fill memory, and bits that no file has."""
        limit(16_384, short_side=self.short_side, max_side=self.max_side)
        limit(1024, multiple=self.multiple)
        require(
            self.crop == 0 or 64 <= self.crop <= 16_384,
            f"crop is {self.crop}: needs 0 (whole images), or 64 to 16384 pixels",
        )
        require(
            not self.crop or self.keep_ratio,
            "crop takes squares, which keep_ratio false would stretch; set input.keep_ratio=true",
        )
        require(
            8 <= self.bits <= 16 and (self.bits == 16 or self.intensity == "bit_depth"),
            f"bits is {self.bits}: needs 8 to 16, and input.intensity=bit_depth if below 16",
        )
        require(self.max_pixels >= 1, f"max_pixels is {self.max_pixels}: must be above 0")
        require(
            self.short_side is None or self.short_side >= 32,
            f"short_side is {self.short_side}: at least 32 pixels are needed",
        )
        require(self.max_side >= 32, f"max_side is {self.max_side}: at least 32 pixels are needed")
        require(min(self.std) > 0, f"std {self.std} must be above 0")
        require(
            self.multiple >= 32 and self.multiple % 32 == 0,
            f"multiple is {self.multiple}: the pyramid needs a multiple of 32",
        )
        require(
            self.short_side is not None or (self.keep_ratio and self.train_short_sides is None),
            "without short_side an image keeps its size; give input.short_side, or keep_ratio "
            "true and train_short_sides none",
        )
        low, high = self.train_short_sides or (32, 32)
        limit(16_384, train_short_sides=high)
        require(
            32 <= low <= high,
            f"train_short_sides {self.train_short_sides}: needs 32 <= lowest <= highest",
        )
