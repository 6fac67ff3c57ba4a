"""Large images in overlapping tiles: find instances in each, and make one of those cut by a seam.

A piece of an object that lies wholly inside another tile is dropped: that tile sees all of it. Of
instances of different tiles that agree where the tiles overlap, the best that no seam cuts is kept;
if all are cut, their polygons together are the object.

Dimension key
    N: instances of all tiles    T: tiles    R: rays    2: (x, y)    4: x0, y0, x1, y1, in pixels
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.errors import ConfigError
from polarmask.inference.instances import Instances

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels."""

Find = Callable[[Sequence[NDArray[np.uint8]]], list[Instances]]
"""Finds the instances of each image."""

TileSize = int | Literal["auto"] | None
"""Side of a tile in pixels; `auto` takes that of the training images; None tiles nothing."""

_MUCH_LARGER = 1.25
_OVERLAP = 0.25
_SAME_OBJECT = 0.5
"""Share of two areas, where tiles overlap, above which both are one object."""
_SEAM = 1.5
"""Pixels from a seam within which an instance counts as cut by it."""
_BATCH_TILES = 4
_SMALLEST_TILE = 64


def tile_side(
    image_hw: tuple[int, int], tile: TileSize, learned_side: int | None, *, must: bool = False
) -> int | None:
    """Return the side of an image's tiles in pixels; None for an image that stays whole.

    Args:
        image_hw: Rows and columns of the image.
        tile: The side that is wanted; `auto` tiles images that are much larger than those that the
            model learned from, into tiles of their size.
        learned_side: Longer side of the largest training image in pixels; None if the model is
            given images of one scale, or if it is not known.
        must: `auto` tiles images that are a little larger, too: shrunk as a whole, they would have
            another scale than the model learned.

    Raises:
        ConfigError: A side under 64 pixels.
    """
    if tile == "auto":
        largest = 1 if must else _MUCH_LARGER
        if learned_side is None or max(image_hw) <= largest * learned_side:
            return None
        tile = max(learned_side, _SMALLEST_TILE)
    if tile is not None and tile < _SMALLEST_TILE:
        raise ConfigError(f"a tile of {tile} pixels is too small; give at least {_SMALLEST_TILE}")
    return tile if tile is not None and max(image_hw) > tile else None


def tile_boxes(image_hw: tuple[int, int], side: int) -> list[Box]:
    """Return tiles of one size that cover an image, row by row; neighbours share a quarter."""
    rows, columns = (_starts(length, side) for length in image_hw)
    height, width = min(side, image_hw[0]), min(side, image_hw[1])
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    count = -(-(length - side) // round(side * (1 - _OVERLAP))) + 1
    return [round(n * (length - side) / (count - 1)) for n in range(count)]


def predict_tiled(find: Find, image: NDArray[np.uint8], side: int) -> Instances:
    """Find instances in tiles of an image and join them; best score first.

    Args:
        find: Returns the instances of each tile.
        image: (H, W, 3) uint8 RGB.
        side: Of the tiles, in pixels.
    """
    height, width = image.shape[:2]
    boxes = tile_boxes((height, width), side)
    found: list[Instances] = []
    for first in range(0, len(boxes), _BATCH_TILES):
        some = boxes[first : first + _BATCH_TILES]
        found += find([image[y0:y1, x0:x1] for x0, y0, x1, y1 in some])
    tile_N = np.repeat(np.arange(len(found)), [len(each) for each in found])
    return _join(_moved(found, boxes, (height, width)), tile_N, boxes)


def _moved(
    found: Sequence[Instances], boxes: Sequence[Box], image_hw: tuple[int, int]
) -> Instances:
    """Return the instances of all tiles in pixels of the image."""
    corners = [np.array(box[:2], dtype=np.float32) for box in boxes]
    further: dict[int, NDArray[np.float32]] = {}
    first = 0
    for one, corner in zip(found, corners, strict=True):
        further |= {first + row: parts + corner for row, parts in one.further_parts.items()}
        first += len(one)
    pairs = list(zip(found, corners, strict=True))
    return replace(
        found[0],
        image_hw=image_hw,
        polygons=np.concatenate([one.polygons + corner for one, corner in pairs]),
        boxes_xywh=np.concatenate(
            [one.boxes_xywh + np.append(corner, [0, 0]).astype(np.float32) for one, corner in pairs]
        ),
        scores=np.concatenate([one.scores for one in found]),
        category_ids=np.concatenate([one.category_ids for one in found]),
        category_names=tuple(name for one in found for name in one.category_names),
        centers=np.concatenate([one.centers + corner for one, corner in pairs]),
        ray_lengths=np.concatenate([one.ray_lengths for one in found]),
        further_parts=further,
        cut_below=max(one.cut_below for one in found),
    )


def _join(found: Instances, tile_N: NDArray[np.int64], tiles: Sequence[Box]) -> Instances:
    tile_T4 = np.array(tiles, dtype=np.float32)
    cut_N = ~_lies_free(found, tile_T4[tile_N][:, None])[:, 0]
    # A piece that lies free in another tile is seen there with the rest of its object.
    kept_N = np.flatnonzero(~(cut_N & _lies_free(found, tile_T4[None]).any(axis=1)))
    found, tile_N, cut_N = found.select(kept_N.tolist()), tile_N[kept_N], cut_N[kept_N]
    same_as: dict[int, list[int]] = defaultdict(list)
    for row, other in _same_objects(found, tile_N, tiles, cut_N):
        same_as[row].append(other)
        same_as[other].append(row)
    parts_of: dict[int, list[int]] = {}
    gone: set[int] = set()
    # Whole instances first: a cut one that agrees with one of them is a piece of it.
    for row in np.lexsort([-found.scores, cut_N]).tolist():
        if row not in gone:
            pieces = _connected(row, same_as, gone) if cut_N[row] else [row]
            parts_of[row] = pieces[1:]
            gone.update(pieces, *(same_as[piece] for piece in pieces))
    order = sorted(parts_of, key=lambda row: -found.scores[row])
    return _with_parts(found, {row: parts_of[row] for row in order})


def _connected(row: int, same_as: dict[int, list[int]], gone: set[int]) -> list[int]:
    """Return a cut instance and all that are pieces of its object, the given one first."""
    found, waiting = [row], [row]
    while waiting:
        for other in same_as[waiting.pop()]:
            if other not in gone and other not in found:
                found.append(other)
                waiting.append(other)
    return found


def _lies_free(found: Instances, tile_NT4: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each instance and tile whether no seam of the tile cuts the instance."""
    size_2 = np.array(found.image_hw[::-1])
    low_N12 = found.polygons.min(axis=1)[:, None]
    high_N12 = found.polygons.max(axis=1)[:, None]
    free_low = (low_N12 >= tile_NT4[..., :2] + _SEAM) | (tile_NT4[..., :2] == 0)
    free_high = (high_N12 <= tile_NT4[..., 2:] - _SEAM) | (tile_NT4[..., 2:] == size_2)
    return np.asarray((free_low & free_high).all(axis=2))


def _same_objects(
    found: Instances, tile_N: NDArray[np.int64], tiles: Sequence[Box], cut_N: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of instances of different tiles that agree where the tiles overlap."""
    low_N2, high_N2 = found.polygons.min(axis=1), found.polygons.max(axis=1)
    rows_of = [np.flatnonzero(tile_N == tile) for tile in range(len(tiles))]
    for first in range(len(tiles)):
        for second in range(first + 1, len(tiles)):
            overlap = _intersection(tiles[first], tiles[second])
            if overlap is None:
                continue
            rows, others = (
                own[
                    (low_N2[own] < overlap[2:]).all(axis=1)
                    & (high_N2[own] > overlap[:2]).all(axis=1)
                ]
                for own in (rows_of[first], rows_of[second])
            )
            for row in rows.tolist():
                near = others[
                    (low_N2[others] < high_N2[row]).all(axis=1)
                    & (high_N2[others] > low_N2[row]).all(axis=1)
                    & (found.category_ids[others] == found.category_ids[row])
                ]
                for other in near.tolist():
                    cut = bool(cut_N[row] or cut_N[other])
                    if _agree(found.polygons[row], found.polygons[other], overlap, cut=cut):
                        yield row, other


def _intersection(one: Box, other: Box) -> Box | None:
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _agree(
    one: NDArray[np.float32], other: NDArray[np.float32], overlap: Box, *, cut: bool
) -> bool:
    """Return whether two polygons (R, 2) are one object, as far as the overlap shows.

    Whole ones share most of their union, cut ones most of the smaller.
    """
    both = np.concatenate([one, other])
    x0, y0 = np.maximum(np.floor(both.min(axis=0)).astype(int), overlap[:2]).tolist()
    x1, y1 = np.minimum(np.ceil(both.max(axis=0)).astype(int), overlap[2:]).tolist()
    bitmaps = []
    for polygon in (one, other):
        bitmap = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        cv2.fillPoly(bitmap, [np.round(polygon - (x0, y0) - 0.5).astype(np.int32)], 1)
        bitmaps.append(bitmap.astype(bool))
    of = min(int(each.sum()) for each in bitmaps) if cut else int((bitmaps[0] | bitmaps[1]).sum())
    return of > 0 and int((bitmaps[0] & bitmaps[1]).sum()) > _SAME_OBJECT * of


def _with_parts(found: Instances, parts_of: dict[int, list[int]]) -> Instances:
    """Return the instances that are keys, each with the polygons of others as further parts."""
    result = found.select(list(parts_of))
    further = dict(result.further_parts)
    boxes = result.boxes_xywh.copy()
    for new, (row, others) in enumerate(parts_of.items()):
        if not others:
            continue
        parts = [found.polygons[row], *(part for each in others for part in found.parts(each))]
        own = further.get(new)
        more = np.stack(parts[1:])
        further[new] = more if own is None else np.concatenate([own, more])
        vertices = np.concatenate(parts)
        low_2, high_2 = vertices.min(axis=0), vertices.max(axis=0)
        boxes[new] = np.concatenate([low_2, high_2 - low_2])
    return replace(result, boxes_xywh=boxes, further_parts=further)
