"""Masks in three forms: polygons, run-length encoding (RLE), bitmaps.

The only user of `pycocotools.mask`. RLE here is COCO's compressed form with `counts` as str, so it
goes into JSON as it is. Polygons are in continuous pixel coordinates: the pixel in row i and
column j covers [j, j+1) x [i, i+1).

Dimension key
    N, M: objects    V: vertices    H, W: image rows, columns    2: (x, y)
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Polygon = NDArray[np.float64]
"""Vertices (V, 2), (x, y) in pixels, V >= 3, without a repeated closing vertex."""

_TRACE_SCALE = 4
_MOST_PARTS = 100
"""Real objects have a few; a speckled mask has a part for every speck."""
_SPECK_AREA = 16
"""Square pixels; also under 1 % of the object's largest part, a part is a speck."""


class Rle(TypedDict):
    """COCO's compressed run-length encoding, column by column."""

    size: list[int]
    """[height, width] of the image in pixels."""
    counts: str


Segmentation = tuple[Polygon, ...] | Rle
"""One object: the union of polygons, or an RLE."""


def rles_from_polygons(
    polygons: Iterable[NDArray[np.floating[Any]]], image_hw: tuple[int, int]
) -> list[Rle]:
    """Rasterise each polygon (V, 2) as one object, without a bitmap.

    Vertices may lie outside the image; the polygon is clipped to it.
    """
    flat = [np.asarray(polygon, dtype=np.float64).reshape(-1) for polygon in polygons]
    # frPyObjects reads a list of four numbers as a box, so a line must not reach it.
    if any(len(coordinates) < 6 for coordinates in flat):
        raise ValueError("a polygon needs at least 3 vertices")
    if not flat:
        return []
    return [_with_text_counts(rle) for rle in coco_mask.frPyObjects(flat, *image_hw)]


def rles_from_whole_pixels(
    polygons: Iterable[NDArray[np.floating[Any]]], image_hw: tuple[int, int]
) -> list[Rle]:
    """Rasterise each polygon as the original does: vertices cut to whole pixels, border included.

    Each polygon is drawn on a bitmap of its own box, not of the image. Where vertices lie outside
    the image, pixels at its border may differ: OpenCV clips lines before it walks along them.
    """
    rles = []
    for polygon in polygons:
        pixel_V2 = np.trunc(polygon).astype(np.int32)
        left, top, width, height = cv2.boundingRect(pixel_V2)
        low_2 = max(left, 0), max(top, 0)
        width = max(min(left + width, image_hw[1]) - low_2[0], 0)
        height = max(min(top + height, image_hw[0]) - low_2[1], 0)
        # Rows above and below stay empty: in each column runs begin and end.
        crop = np.zeros((height + 2, width), dtype=np.uint8)
        if width and height:
            cv2.drawContours(crop[1:-1], [pixel_V2 - low_2], -1, 1, cv2.FILLED)
        rles.append(_rle_of_crop(crop, low_2, image_hw))
    return rles


def _rle_of_crop(crop: NDArray[np.uint8], low_2: tuple[int, int], hw: tuple[int, int]) -> Rle:
    """Encode a bitmap whose second row lies in a larger, empty one at `low_2`, (x, y)."""
    image_height, image_width = hw
    # A run begins or ends where a pixel differs from the one above it: pixels by column, then row.
    row_N, column_N = np.divmod(np.flatnonzero(crop[1:] != crop[:-1]), crop.shape[1])
    border_N = (column_N + low_2[0]) * image_height + row_N + low_2[1]
    # A run that ends at the lower border of a column continues where the next begins at the top:
    # the two borders are one position and cancel. The last run ends with the image.
    position_N, count_N = np.unique(border_N, return_counts=True)
    num_pixels = image_height * image_width
    stays_N = position_N[(count_N == 1) & (position_N < num_pixels)]
    runs = np.diff(stays_N, prepend=0, append=num_pixels)
    rle = {"size": [image_height, image_width], "counts": runs}
    return _with_text_counts(coco_mask.frPyObjects(rle, image_height, image_width))


Raster = Literal["exact", "whole_pixels"]

RASTERS = {"exact": rles_from_polygons, "whole_pixels": rles_from_whole_pixels}
"""How polygons become pixels, by name."""


def filled_areas(polygons: Sequence[Polygon], image_hw: tuple[int, int]) -> list[int]:
    """Count the pixels that each polygon covers, also where it crosses itself (even-odd rule)."""
    flat = [polygon.reshape(-1) for polygon in polygons]
    return [int(coco_mask.area(rle)) for rle in coco_mask.frPyObjects(flat, *image_hw)]


def rles_from_labels(label_HW: NDArray[np.integer[Any]]) -> list[Rle]:
    """Encode each value above 0 of a label image as one object, in the order of the values."""
    height, width = label_HW.shape
    flat = label_HW.T.reshape(-1)  # RLE goes down the columns
    position_N = np.flatnonzero(flat > 0)
    position_N = position_N[np.argsort(flat[position_N], kind="stable")]
    value_N = flat[position_N]
    if not len(position_N):
        return []
    begins_N = np.ones(len(position_N), dtype=bool)
    begins_N[1:] = (np.diff(position_N) != 1) | (value_N[1:] != value_N[:-1])
    first_S = np.flatnonzero(begins_N)
    last_S = np.append(first_S[1:], len(position_N)) - 1
    run_S2 = np.stack([position_N[first_S], position_N[last_S] + 1], axis=1)
    objects = np.split(run_S2, np.flatnonzero(np.diff(value_N[first_S])) + 1)
    rles = []
    for runs in objects:
        counts = np.diff(runs.reshape(-1), prepend=0, append=height * width)
        rle = {"size": [height, width], "counts": counts}
        rles.append(_with_text_counts(coco_mask.frPyObjects(rle, height, width)))
    return rles


def labels_from_rles(rles: Sequence[Rle], image_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Return a label image (H, W): n + 1 where the n-th mask is; where masks overlap, the first."""
    flat = np.zeros(image_hw[0] * image_hw[1], dtype=np.int32)
    for number in range(len(rles), 0, -1):
        ends = np.cumsum(_decode_counts(rles[number - 1]["counts"]))
        for start, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=False):
            flat[start:end] = number
    return np.ascontiguousarray(flat.reshape(image_hw[::-1]).T)


def crop_from_rle(rle: Rle) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the mask inside its box, and where the box begins: (x, y) in pixels."""
    x0, y0, x1, y1 = (int(value) for value in rle_box(rle))
    height = rle["size"][0]
    ends = np.cumsum(_decode_counts(rle["counts"]))
    columns = np.zeros((x1 - x0) * height, dtype=bool)
    for start, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=False):
        columns[start - x0 * height : end - x0 * height] = True
    return columns.reshape(x1 - x0, height)[:, y0:y1].T, (x0, y0)


def united(rles: Sequence[Rle]) -> Rle:
    """Return the union of masks of one size."""
    return _with_text_counts(coco_mask.merge(list(rles)))


def rle_from_segmentation(segmentation: Segmentation, image_hw: tuple[int, int]) -> Rle:
    """Return one RLE for an object; polygons are united, an RLE is returned as it is."""
    if isinstance(segmentation, dict):
        return segmentation
    return united(rles_from_polygons(segmentation, image_hw))


def bitmap_from_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode to (H, W) bool."""
    # Not by pycocotools: its decode warns under NumPy 2 at every call.
    runs = _decode_counts(rle["counts"])
    height, width = rle["size"]
    columns_WH = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height)
    return np.ascontiguousarray(columns_WH.T)


def rle_area(rle: Rle) -> int:
    """Count the mask's pixels."""
    return int(coco_mask.area(rle))


def rle_box(rle: Rle) -> tuple[float, float, float, float]:
    """Return the tight box (x0, y0, x1, y1) in pixels; all zero for an empty mask."""
    x, y, width, height = (float(value) for value in coco_mask.toBbox(rle))
    return x, y, x + width, y + height


def rle_iou(
    first_N: Sequence[Rle], second_M: Sequence[Rle], crowd_M: Sequence[bool] | None = None
) -> NDArray[np.float64]:
    """Return mask IoU (N, M) in [0, 1].

    Where `crowd_M` is true the first mask's area takes the place of the union, as in COCO's
    evaluation of detections inside crowd regions.
    """
    if not first_N or not second_M:
        return np.zeros((len(first_N), len(second_M)))
    crowd = [int(value) for value in crowd_M] if crowd_M is not None else [0] * len(second_M)
    iou_NM: NDArray[np.float64] = coco_mask.iou(list(first_N), list(second_M), crowd)
    return iou_NM


def parse_rle(raw: dict[str, Any], image_hw: tuple[int, int]) -> Rle:
    """Check an RLE from a file, compressed or not, and return it compressed.

    Bad input makes the C codec write past its buffer, hence the checks here.

    Raises:
        ValueError: `size` is not `image_hw`, or `counts` is no run-length code of that size.
    """
    height, width = image_hw
    if raw.get("size") != [height, width]:
        raise ValueError(f"RLE size {raw.get('size')} is not the image's [{height}, {width}]")
    counts = raw.get("counts")
    runs = _decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("RLE counts are neither text nor a list of whole numbers >= 0")
    if sum(runs) != height * width:
        raise ValueError(f"RLE runs cover {sum(runs)} of {height * width} pixels")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts}
    uncompressed = {"size": [height, width], "counts": runs}
    return _with_text_counts(coco_mask.frPyObjects(uncompressed, height, width))


def _decode_counts(text: str) -> list[int]:
    """Return the run lengths of COCO's text form.

    Each number is a chain of characters of 5 bits, low bits first; from the third on it is the
    difference to the number two before.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        chunk = ord(character) - 48
        if not 0 <= chunk < 64 or shift > 30:
            raise ValueError("RLE counts are no COCO run-length text")
        value |= (chunk & 0x1F) << shift
        shift += 5
        if chunk & 0x20:
            continue
        if chunk & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("RLE counts end in the middle of a number")
    return runs


def polygons_from_rle(rle: Rle) -> tuple[Polygon, ...]:
    """Trace the outer contours; holes are ignored, an empty mask gives no polygon.

    Contours run through the centres of border pixels. On the mask enlarged four times they lie
    1/8 px inside the true border. Specks are left out (`main_parts`).
    """
    bitmap, (x0, y0) = crop_from_rle(rle)
    crop = bitmap.astype(np.uint8)
    if crop.size == 0:
        return ()
    _, label_HW, found_N5, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    polygons = []
    for part in 1 + np.array(main_parts(found_N5[1:, cv2.CC_STAT_AREA])):
        left, top, width, height = found_N5[part, : cv2.CC_STAT_AREA].tolist()
        own = label_HW[top : top + height, left : left + width] == part
        enlarged = own.astype(np.uint8).repeat(_TRACE_SCALE, axis=0).repeat(_TRACE_SCALE, axis=1)
        contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corner_2 = (x0 + left, y0 + top)
        polygons += [(contour[:, 0, :] + 0.5) / _TRACE_SCALE + corner_2 for contour in contours]
    return tuple(polygons)


def main_parts(area_N: NDArray[np.number[Any]] | Sequence[float]) -> list[int]:
    """Return the indices of an object's parts that are worth learning, largest first.

    Specks and all but the 100 largest parts are left out, whatever their areas in square pixels.
    """
    if len(area_N) == 1:
        return [0] if area_N[0] > 0 else []
    area_N = np.asarray(area_N)
    order_N = np.argsort(-area_N, kind="stable")[:_MOST_PARTS]
    enough = min(_SPECK_AREA, area_N.max(initial=0) / 100)
    return [int(index) for index in order_N if area_N[index] > 0 and area_N[index] >= enough]


def _with_text_counts(rle: dict[str, Any]) -> Rle:
    """Turn counts from bytes to str, as JSON needs."""
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
