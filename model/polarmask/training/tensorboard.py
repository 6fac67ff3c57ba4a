"""TensorBoard of a run: curves, overlays of training targets, overlays of what is found."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from polarmask.data.coco import CocoData
from polarmask.data.images import read_image
from polarmask.errors import ConfigError
from polarmask.geometry.locations import all_locations, level_points
from polarmask.geometry.rays import decode_rays
from polarmask.inference.drawing import (
    SKY,
    Shape,
    contact_sheet,
    draw_shapes,
    shapes_of_annotations,
)
from polarmask.inference.instances import Instances
from polarmask.system.distributed import is_first
from polarmask.training.dataset import Batch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_IMAGES = 6
_CAPTION = 40
"""Characters that fit below an image."""


@contextmanager
def open_tensorboard(folder: Path, step: int, *, wanted: bool) -> Iterator["TensorBoard | None"]:
    """Open the TensorBoard of a run, on the first process only.

    Args:
        folder: Where event files go.
        step: Steps done; entries of later steps are hidden.
        wanted: If false, None is yielded.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if not wanted or not is_first():
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"--tensorboard needs a package that is not installed ({error}); "
            "pip install 'polarmask-k8s[tensorboard]'"
        ) from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield TensorBoard(writer)


class TensorBoard:
    """Scalars and images, each under a stable name."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve, `group/name`."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def batch(self, batch: Batch, strides: tuple[int, ...], step: int) -> None:
        """Show images as the network gets them, with the polygons of their targets."""
        targets = batch.targets
        hw = (batch.image_BHW3.shape[1], batch.image_BHW3.shape[2])
        location_L3 = all_locations(hw, strides)
        center_P2 = level_points(location_L3[targets.location_P], strides)
        polygon_PR2 = decode_rays(center_P2, targets.ray_PR).numpy()
        overlays = []
        for number, image in enumerate(batch.image_BHW3[:_IMAGES].numpy()):
            own = torch.nonzero(targets.image_P == number).flatten().tolist()
            shapes = [Shape((polygon_PR2[p],), SKY, opacity=0.05) for p in own]
            overlays.append(draw_shapes(image, shapes))
        captions = [name[:_CAPTION] for name in batch.file_names[:_IMAGES]]
        sheet = contact_sheet(overlays, captions=captions)
        self._writer.add_image("train/targets", sheet, step, dataformats="HWC")

    def validation(
        self, data: CocoData, found: Mapping[int, Instances], min_score: float, step: int
    ) -> None:
        """Show the first images of the val split: annotations left, detections right."""
        overlays, captions = [], []
        for record in data.images[:_IMAGES]:
            image = read_image(data.image_path(record))
            overlays.append(draw_shapes(image, shapes_of_annotations(record, data.categories)))
            shapes = found[record.id].shapes(min_score=min_score)
            overlays.append(draw_shapes(image, shapes))
            captions += [record.file_name[:_CAPTION], f"found, score >= {min_score:.2f}"]
        sheet = contact_sheet(overlays, captions=captions, columns=2)
        self._writer.add_image("val/found", np.asarray(sheet), step, dataformats="HWC")
