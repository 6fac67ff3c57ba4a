"""How predictions become scored shapes: our rules, and those of the paper's code."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from polarmask.config.settings import PostprocessConfig
from polarmask.geometry.masks import Raster
from polarmask.geometry.rays import ray_directions
from polarmask.original.rays import original_directions


@dataclass(frozen=True, kw_only=True)
class ScoreRules:
    """One value of `postprocess.score`; the defaults are ours."""

    quality_offset: float = 0.0
    """A score is class probability times (quality + this) / (1 + this)."""
    is_scored_by_location: bool = False
    """Keep all categories of a level's best locations, padding included; else the best pairs of
    location and category inside the image."""
    last_pixel: int = 0
    """Pixels by which boxes and polygons end before the image does; 1 where a box's corner is the
    last pixel in it."""
    compares_given_pixels: bool = False
    """Compare boxes in pixels of the given image, not of the network's input."""
    directions: Callable[..., Tensor] = ray_directions
    """(num_rays, like=tensor) to the unit vectors (R, 2) of the rays."""
    raster: Raster = "exact"
    """How polygons become masks."""
    is_padded_to_few_sizes: bool = True
    """Pad to few canvas sizes with the mirror image; else to the smallest, with the mean colour."""


_RULES = {
    "product": ScoreRules(),
    "original": ScoreRules(
        quality_offset=0.5,
        is_scored_by_location=True,
        last_pixel=1,
        compares_given_pixels=True,
        directions=original_directions,
        raster="whole_pixels",
        is_padded_to_few_sizes=False,
    ),
}


def score_rules(config: PostprocessConfig) -> ScoreRules:
    """Return the rules that a config names."""
    return _RULES[config.score]
