"""A server's JSON about one image -> `Instances`.

Dimension key
    N: instances    R: rays    2: (x, y) in pixels of the image held upright
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from polarmask.inference.instances import Instances
from polarmask_serving.client.upload import Image

if TYPE_CHECKING:
    from polarmask.data.images import Pixels

_OLD_DEFAULT = 0.3
"""Of servers that name none."""


def read_instances(
    answer: Mapping[str, Any], *, image: Image | None = None, min_score: float | None = None
) -> Instances:
    """Read a server's JSON about one image, held upright.

    Args:
        answer: The JSON.
        image: What was sent; a file or pixels are kept.
        min_score: What was asked for; None: the model's own threshold.

    Raises:
        KeyError, TypeError, ValueError: It is another server's.
    """
    entries = answer["instances"]
    number = len(entries)
    with_rays = all("rays" in entry for entry in entries)
    polygons = np.array([entry["polygon"] for entry in entries], dtype=np.float32)
    if number and (polygons.ndim != 3 or polygons.shape[1] < 3 or polygons.shape[2] != 2):
        raise ValueError(f"polygons of shape {polygons.shape}")
    nowhere = [[np.nan, np.nan]] * number
    default = answer.get("default_score_threshold", _OLD_DEFAULT)
    return Instances(
        image_hw=(int(answer["image"]["height"]), int(answer["image"]["width"])),
        polygons=polygons if number else np.zeros((0, 0, 2), dtype=np.float32),
        boxes_xywh=_rows([entry["bbox"] for entry in entries], 4),
        scores=np.array([entry["score"] for entry in entries], dtype=np.float32),
        category_ids=np.array([entry["category_id"] for entry in entries], dtype=np.int64),
        category_names=tuple(entry["category"] for entry in entries),
        centers=_rows([e["center"] for e in entries] if with_rays else nowhere, 2),
        ray_lengths=_rows([e["rays"] if with_rays else [] for e in entries]),
        further_parts={
            row: np.array(entry["polygons"][1:], dtype=np.float32)
            for row, entry in enumerate(entries)
            if len(entry.get("polygons", ())) > 1
        },
        image=_kept(image),
        min_score=float(default if min_score is None else min_score),
        warnings={str(kind): str(text) for kind, text in answer.get("warnings", {}).items()},
        served_by=(str(answer["model"]["name"]), str(answer["model"]["version"])),
    )


def _rows(values: list[list[float]], columns: int = 0) -> NDArray[np.float32]:
    """Return (N, columns or more) also where there is no row to count columns in."""
    return np.array(values, dtype=np.float32) if values else np.zeros((0, columns), np.float32)


def _kept(image: Image | None) -> "Pixels | Path | None":
    if isinstance(image, str | PathLike):
        return Path(image)
    if not isinstance(image, np.ndarray):
        return None
    rgb_HW3 = np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image
    return cast("Pixels", rgb_HW3)
