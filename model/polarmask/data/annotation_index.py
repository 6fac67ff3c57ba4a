"""Raw annotations by image, each with an id of its own.

Dimension key
    A: usable annotations
"""

from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco_fields import position_or_id, read_integer, read_integers
from polarmask.data.disk_list import DiskList
from polarmask.data.summary import Problem


@dataclass(frozen=True)
class AnnotationIndex:
    """Finds the entries of an image in a list of annotations."""

    raw: DiskList[dict[str, Any]]
    image_A: NDArray[np.int64]
    """Image id of each, ascending."""
    position_A: NDArray[np.int64]
    """Its index in `raw`."""
    id_A: NDArray[np.int64]
    """Its own id, which no other has."""

    def of(self, image_id: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield ids and entries of an image in the order of the file."""
        first = np.searchsorted(self.image_A, image_id, "left")
        last = np.searchsorted(self.image_A, image_id, "right")
        ids, positions = self.id_A[first:last].tolist(), self.position_A[first:last].tolist()
        for annotation_id, position in zip(ids, positions, strict=True):
            yield annotation_id, self.raw[position]


def index_annotations(
    raw: DiskList[Any], image_ids: Collection[int], problems: list[Problem]
) -> AnnotationIndex:
    """Sort annotations by image; those of no listed image are left out, appended to `problems`."""
    ids, has_id, images, positions = array("q"), array("b"), array("q"), array("q")
    for position, entry in enumerate(raw):
        where = f"annotation {position_or_id(entry, position)}"
        fields = read_integers(entry, ("image_id", "category_id"))
        if isinstance(fields, str):
            problems.append(Problem("object", "malformed_annotation", where, fields))
        elif fields["image_id"] not in image_ids:
            detail = f"image {fields['image_id']} is not in the list of images"
            problems.append(Problem("object", "unknown_image", where, detail))
        else:
            own = read_integer(entry.get("id"))
            ids.append(own or 0)
            has_id.append(own is not None)
            images.append(fields["image_id"])
            positions.append(position)
    image_A, position_A = np.array(images, np.int64), np.array(positions, np.int64)
    id_A, renumbered_A = unique_ids(np.array(ids, np.int64), np.array(has_id, bool))
    if renumbered_A.any():
        detail = (
            f"{int(renumbered_A.sum()):,} of {len(raw):,} have no integer id, or that of an "
            f"earlier one, the first at position {position_A[renumbered_A][0]}; renumbered"
        )
        problems.append(Problem("object", "annotation_ids", "annotations", detail, kept=True))
    order_A = np.argsort(image_A, kind="stable")
    return AnnotationIndex(raw, image_A[order_A], position_A[order_A], id_A[order_A])


def unique_ids(
    id_A: NDArray[np.int64], has_id_A: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give free numbers, from 1 on, to annotations without an id or with that of an earlier one.

    Returns:
        Ids, and which of them are new.
    """
    new_A = np.ones(len(id_A), dtype=bool)
    own_A = np.flatnonzero(has_id_A)
    new_A[own_A[np.unique(id_A[own_A], return_index=True)[1]]] = False
    free = np.setdiff1d(np.arange(1, len(id_A) + 1), id_A[~new_A])  # at least as many as are new
    id_A = id_A.copy()
    id_A[new_A] = free[: new_A.sum()]
    return id_A, new_A
