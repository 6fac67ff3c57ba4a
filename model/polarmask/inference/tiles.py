"""Large images in overlapping tiles: find instances in each, and make one of those cut by a seam.

A piece of an object that lies wholly inside another tile is dropped: that tile sees all of it. Of
instances of different tiles that agree where the tiles overlap, the best that no seam cuts is kept;
if all are cut, their polygons together are the object.

Dimension key
    N: instances of all tiles    O: those of a tile that meet another tile    T: tiles    R: rays
    2: (x, y)    4: x0, y0, x1, y1, in pixels
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
from polarmask.inference.stage_clock import StageClock

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


def predict_tiled(
    find: Find,
    image: NDArray[np.uint8],
    side: int,
    *,
    most: int | None = None,
    clock: StageClock | None = None,
) -> Instances:
    """Find instances in tiles of an image and join them; best score first.

    Args:
        find: Returns the instances of each tile.
        image: (H, W, 3) uint8 RGB.
        side: Of the tiles, in pixels.
        most: Instances of all tiles that are joined, the best ones; `cut_below` says where the
            others were left out. None joins all.
        clock: Adds up the seconds of joining, in the stage `decode_rays`.

    Raises:
        TimeoutError: The clock's limit is passed.
    """
    clock = clock or StageClock()
    height, width = image.shape[:2]
    boxes = tile_boxes((height, width), side)
    found: list[Instances] = []
    for first in range(0, len(boxes), _BATCH_TILES):
        some = boxes[first : first + _BATCH_TILES]
        found += find([image[y0:y1, x0:x1] for x0, y0, x1, y1 in some])
        if most is not None and sum(map(len, found)) > 2 * most:  # so that memory has a limit
            found = _best(found, most)
    with clock("decode_rays"):
        if most is not None:
            found = _best(found, most)
        tile_N = np.repeat(np.arange(len(found)), [len(each) for each in found])
        return _join(_moved(found, boxes, (height, width)), tile_N, boxes, clock)


def _best(found: Sequence[Instances], most: int) -> list[Instances]:
    """Return the instances of each tile that are among the best of all tiles."""
    score_N = np.concatenate([one.scores for one in found])
    if len(score_N) <= most:
        return list(found)
    order_N = np.argsort(-score_N, kind="stable")
    least = float(score_N[order_N[most - 1]])
    is_kept_N = np.zeros(len(score_N), np.bool_)
    is_kept_N[order_N[:most]] = True
    ends = np.cumsum([len(one) for one in found])[:-1]
    return [
        replace(one[is_kept], cut_below=max(one.cut_below, least))
        for one, is_kept in zip(found, np.split(is_kept_N, ends), strict=True)
    ]


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


def _join(
    found: Instances, tile_N: NDArray[np.int64], tiles: Sequence[Box], clock: StageClock
) -> Instances:
    tile_T4 = np.array(tiles, dtype=np.float32)
    extent_N4 = np.concatenate([found.polygons.min(axis=1), found.polygons.max(axis=1)], axis=1)
    cut_N = ~_lies_free(extent_N4, tile_T4[tile_N], found.image_hw)
    # A piece that lies free in another tile is seen there with the rest of its object.
    is_kept_N = ~cut_N
    is_kept_N[cut_N] = ~_is_whole_in_one(extent_N4[cut_N], tile_T4, found.image_hw, clock)
    found, extent_N4 = found[is_kept_N], extent_N4[is_kept_N]
    tile_N, cut_N = tile_N[is_kept_N], cut_N[is_kept_N]
    same_as: dict[int, list[int]] = defaultdict(list)
    for row, other in _same_objects(found, extent_N4, tile_N, tiles, cut_N, clock):
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
    found, waiting = {row: None}, [row]  # a set in order
    while waiting:
        for other in same_as[waiting.pop()]:
            if other not in gone and other not in found:
                found[other] = None
                waiting.append(other)
    return list(found)


def _is_whole_in_one(
    extent_N4: NDArray[np.float32],
    tile_T4: NDArray[np.float32],
    image_hw: tuple[int, int],
    clock: StageClock,
) -> NDArray[np.bool_]:
    """Return for each instance whether it lies free in any tile."""
    is_whole_N = np.zeros(len(extent_N4), np.bool_)
    for tile_4 in tile_T4:
        clock.check()
        is_whole_N |= _lies_free(extent_N4, tile_4, image_hw)
    return is_whole_N


def _lies_free(
    extent_N4: NDArray[np.float32], tile_N4: NDArray[np.float32], image_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return for each instance whether no seam of its tile, or of one tile of all, cuts it."""
    size_2 = np.array(image_hw[::-1])
    free_low = (extent_N4[:, :2] >= tile_N4[..., :2] + _SEAM) | (tile_N4[..., :2] == 0)
    free_high = (extent_N4[:, 2:] <= tile_N4[..., 2:] - _SEAM) | (tile_N4[..., 2:] == size_2)
    return np.asarray((free_low & free_high).all(axis=1))


def _same_objects(
    found: Instances,
    extent_N4: NDArray[np.float32],
    tile_N: NDArray[np.int64],
    tiles: Sequence[Box],
    cut_N: NDArray[np.bool_],
    clock: StageClock,
) -> Iterator[tuple[int, int]]:
    """Yield pairs of instances of different tiles that agree where the tiles overlap."""
    begin_T = np.searchsorted(tile_N, np.arange(len(tiles) + 1))
    for first, second, overlap in _overlaps(tiles):
        rows, others = (
            begin_T[at] + _meeting(extent_N4[begin_T[at] : begin_T[at + 1]], overlap)
            for at in (first, second)
        )
        if not len(rows) or not len(others):
            continue
        area_O = np.array([_area(polygon, overlap) for polygon in found.polygons[others]])
        for row in rows.tolist():
            clock.check()
            is_near_O = found.category_ids[others] == found.category_ids[row]
            is_near_O &= _may_agree(
                _area(found.polygons[row], overlap),
                area_O,
                _shared_area(extent_N4[row], extent_N4[others]),
                cut_N[row] | cut_N[others],
            )
            for other in others[is_near_O].tolist():
                cut = bool(cut_N[row] or cut_N[other])
                if _agree(found.polygons[row], found.polygons[other], overlap, cut=cut):
                    yield row, other


def _overlaps(tiles: Sequence[Box]) -> Iterator[tuple[int, int, Box]]:
    """Yield pairs of tiles that overlap, and where they do."""
    tile_T4 = np.array(tiles)
    for first in range(len(tiles)):
        low_T2 = np.maximum(tile_T4[first, :2], tile_T4[first + 1 :, :2])
        high_T2 = np.minimum(tile_T4[first, 2:], tile_T4[first + 1 :, 2:])
        for after in np.flatnonzero((low_T2 < high_T2).all(axis=1)).tolist():
            (x0, y0), (x1, y1) = low_T2[after].tolist(), high_T2[after].tolist()
            yield first, first + 1 + after, (x0, y0, x1, y1)


def _meeting(extent_N4: NDArray[np.float32], overlap: Box) -> NDArray[np.int64]:
    """Return the rows of bounding boxes that have a part in the overlap."""
    is_in_N = (extent_N4[:, :2] < overlap[2:]) & (extent_N4[:, 2:] > overlap[:2])
    return np.flatnonzero(is_in_N.all(axis=1))


def _shared_area(
    extent_4: NDArray[np.float32], extent_O4: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return how many pixels each bounding box shares with the first one, at most."""
    low_O2 = np.maximum(extent_O4[:, :2], extent_4[:2])
    high_O2 = np.minimum(extent_O4[:, 2:], extent_4[2:])
    size_O2 = np.ceil(high_O2) - np.floor(low_O2) + 2
    return np.where((low_O2 < high_O2).all(axis=1), np.prod(size_O2, axis=1), 0)


def _may_agree(
    area: int,
    area_O: NDArray[np.int64],
    shared_O: NDArray[np.float32],
    cut_O: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return whether so much may be shared that `_agree` is worth asking."""
    smaller_O = np.minimum(area, area_O)
    most_O = np.minimum(shared_O, smaller_O)
    # Of the union, that is, of the sum less what is shared.
    of_union_O = (area + area_O) * _SAME_OBJECT / (1 + _SAME_OBJECT)
    return np.asarray(most_O > np.where(cut_O, _SAME_OBJECT * smaller_O, of_union_O))


def _agree(
    one: NDArray[np.float32], other: NDArray[np.float32], overlap: Box, *, cut: bool
) -> bool:
    """Return whether two polygons (R, 2) are one object, as far as the overlap shows.

    Whole ones share most of their union, cut ones most of the smaller.
    """
    window = _window(np.concatenate([one, other]), overlap)
    bitmaps = [_bitmap(polygon, window) for polygon in (one, other)]
    of = min(int(each.sum()) for each in bitmaps) if cut else int((bitmaps[0] | bitmaps[1]).sum())
    return of > 0 and int((bitmaps[0] & bitmaps[1]).sum()) > _SAME_OBJECT * of


def _area(polygon: NDArray[np.float32], overlap: Box) -> int:
    """Return a polygon's pixels in the overlap."""
    return int(_bitmap(polygon, _window(polygon, overlap)).sum())


def _window(vertices: NDArray[np.float32], overlap: Box) -> Box:
    """Return the part of the overlap in which vertices (V, 2) may have pixels."""
    x0, y0 = np.maximum(np.floor(vertices.min(axis=0)).astype(int) - 1, overlap[:2]).tolist()
    x1, y1 = np.minimum(np.ceil(vertices.max(axis=0)).astype(int) + 1, overlap[2:]).tolist()
    return x0, y0, x1, y1


def _bitmap(polygon: NDArray[np.float32], window: Box) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = window
    bitmap = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    cv2.fillPoly(bitmap, [np.round(polygon - 0.5).astype(np.int32) - (x0, y0)], 1)
    return bitmap.astype(bool)


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
