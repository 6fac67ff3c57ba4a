"""What a model finds in the images of a split."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

from polarmask.data.coco import CocoData, ImageRecord
from polarmask.data.images import Pixels, read_image
from polarmask.errors import DataError
from polarmask.inference.instances import Instances
from polarmask.inference.predictor import Predictor
from polarmask.system.distributed import is_first
from polarmask.system.progress_bar import progress_bar

logger = logging.getLogger(__name__)

_BATCH_IMAGES = 8
_BATCH_PIXELS = 32_000_000
"""Of the images of a batch together, to save memory."""


def predict_split(
    predictor: Predictor, data: CocoData, *, skip_unreadable: bool = False
) -> dict[int, Instances]:
    """Return the instances of every image, by image id; with `skip_unreadable`, of the readable.

    Raises:
        DataError: An image can't be decoded, and is not skipped.
    """
    predictions: dict[int, Instances] = {}
    with progress_bar(
        total=len(data.images), desc="predicting", unit="image", shown=is_first()
    ) as progress:
        for records in _batches(data):
            pixels = _read(data, records, skip_unreadable=skip_unreadable)
            if pixels:
                found = predictor.predict(list(pixels.values()))
                predictions |= dict(zip(pixels, found, strict=True))
            progress.update(len(records))
    return predictions


def _read(
    data: CocoData, records: Sequence[ImageRecord], *, skip_unreadable: bool
) -> dict[int, Pixels]:
    """Decode images, by image id."""
    pixels = {}
    for record in records:
        try:
            pixels[record.id] = read_image(data.image_path(record))
        except DataError as error:
            if not skip_unreadable:
                raise
            logger.warning("%s; it is not evaluated", error)
    return pixels


def _batches(data: CocoData) -> Iterator[tuple[ImageRecord, ...]]:
    """Yield batches of images of one size, so that no batch is mostly padding; large ones alone."""
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, record in enumerate(data.images):
        places[record.height, record.width].append(place)
    for (rows, columns), group in sorted(places.items()):
        number = min(max(1, _BATCH_PIXELS // (rows * columns)), _BATCH_IMAGES)
        for first in range(0, len(group), number):
            yield tuple(data.images[place] for place in group[first : first + number])
