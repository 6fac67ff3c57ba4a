"""Overlays: filled outlines, rays and labels drawn into an image, and contact sheets.

All images are (H, W, 3) uint8 RGB. Polygons are in continuous pixel coordinates of the given image
and are drawn at the size of the overlay, so that lines stay fine on small images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.data.coco import Category, ImageRecord
from polarmask.data.images import Pixels
from polarmask.data.intensity import shown
from polarmask.system.files import atomic_path

Colour = tuple[int, int, int]

# Okabe and Ito's colours, distinct with every kind of colour vision.
SKY: Colour = (86, 180, 233)
ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 158, 115)
YELLOW: Colour = (240, 228, 66)
PINK: Colour = (204, 121, 167)
VERMILION: Colour = (213, 94, 0)
BLUE: Colour = (0, 114, 178)
WHITE: Colour = (255, 255, 255)
PALETTE = (SKY, ORANGE, GREEN, YELLOW, PINK, VERMILION, BLUE)

_SMALL_OVERLAY, _LARGE_OVERLAY = 768, 8192
_SUBPIXEL_BITS = 4
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class Shape:
    """Something to draw."""

    polygons: tuple[NDArray[np.floating], ...]
    """(V, 2), (x, y) in pixels of the image."""
    colour: Colour
    label: str = ""
    """Written into the shape if it is large enough for it."""
    opacity: float = 0.35
    """Of the filling, 0 to 1."""
    center: NDArray[np.floating] | None = None
    """(x, y); rays are drawn from here to every vertex of the first polygon."""


def shapes_of_annotations(record: ImageRecord, categories: Sequence[Category]) -> list[Shape]:
    """Return an image's objects as shapes, labelled with their category where there are several.

    Crowd regions are left out.
    """
    objects = [annotation for annotation in record.annotations if annotation.parts]
    colours = colours_of([annotation.category for annotation in objects])
    return [
        Shape(
            annotation.parts,
            colour,
            label=categories[annotation.category].name if len(categories) > 1 else "",
        )
        for annotation, colour in zip(objects, colours, strict=True)
    ]


def colours_of(categories: list[int]) -> list[Colour]:
    """Return a colour per category, or per object where there is only one category."""
    keys = categories if len(set(categories)) > 1 else range(len(categories))
    return [PALETTE[key % len(PALETTE)] for key in keys]


def draw_shapes(
    image: Pixels, shapes: Sequence[Shape], *, side: int | None = None
) -> NDArray[np.uint8]:
    """Draw shapes on a copy of an image, the largest first.

    Args:
        image: (H, W, 3) RGB; more than 8 bits are stretched, so that people see something.
        shapes: In pixels of the image.
        side: Longer side of the overlay in pixels; None enlarges images below 768, shrinks those
            above 8192, which JPEG and memory may not take, and keeps others.
    """
    longer = max(image.shape[:2])
    overlay = resized(shown(image), side or min(max(longer, _SMALL_OVERLAY), _LARGE_OVERLAY)).copy()
    scale = max(overlay.shape[:2]) / longer
    placed = sorted(
        (_Placed(shape, scale) for shape in shapes if shape.polygons),
        key=lambda placed: -placed.box_size,
    )
    # Two passes: a filling must not tint an outline.
    for shape in placed:
        shape.fill(overlay)
    width = max(1, round(max(overlay.shape[:2]) / 700))
    for shape in placed:
        shape.outline(overlay, width)
    for shape in placed:
        shape.write_label(overlay)
    return overlay


def resized(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale an image so that its longer side is `side` pixels."""
    factor = side / max(image.shape[:2])
    if factor == 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8)


class _Placed:
    """A shape in pixels of the overlay."""

    def __init__(self, shape: Shape, scale: float) -> None:
        self.shape = shape
        self.polygons = [polygon * scale for polygon in shape.polygons]
        self.center = None if shape.center is None else shape.center * scale
        vertices = np.concatenate(self.polygons)
        low, high = np.floor(vertices.min(axis=0)), np.ceil(vertices.max(axis=0))
        self.x0, self.y0, self.x1, self.y1 = map(int, (*low, *high))

    @property
    def box_size(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def fill(self, overlay: NDArray[np.uint8]) -> None:
        x0, y0 = max(self.x0, 0), max(self.y0, 0)
        region = overlay[y0 : max(self.y1, 0), x0 : max(self.x1, 0)]
        if region.size == 0:
            return
        mask = np.zeros(region.shape[:2], dtype=np.uint8)
        # One by one: filled together, overlapping parts would leave a hole.
        for polygon in self.polygons:
            cv2.fillPoly(mask, [_fixed(polygon - (x0, y0))], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        weight = mask[:, :, None] * (self.shape.opacity / 255)
        region[:] = region + weight * (np.array(self.shape.colour) - region)

    def outline(self, overlay: NDArray[np.uint8], width: int) -> None:
        contours = [_fixed(polygon) for polygon in self.polygons]
        colour = self.shape.colour
        if self.center is not None:
            center = _fixed(self.center[None])[0]
            spokes = [np.stack([center, vertex]) for vertex in contours[0]]
            cv2.polylines(overlay, spokes, False, colour, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
            cv2.circle(
                overlay,
                center.tolist(),
                (width + 1) << _SUBPIXEL_BITS,
                WHITE,
                -1,
                cv2.LINE_AA,
                _SUBPIXEL_BITS,
            )
        cv2.polylines(overlay, contours, True, colour, width, cv2.LINE_AA, _SUBPIXEL_BITS)

    def write_label(self, overlay: NDArray[np.uint8]) -> None:
        """Write at the upper left corner of the box, if the box is wide enough."""
        size = max(overlay.shape[:2]) / 1200
        label = _drawable(self.shape.label)
        (width, height), base = cv2.getTextSize(label, _FONT, size, 1)
        if not label or width > self.x1 - self.x0 or 4 * height > self.y1 - self.y0:
            return
        x, y = max(self.x0, 0), max(self.y0, 0)
        cv2.rectangle(overlay, (x, y), (x + width + 4, y + height + base + 2), (20, 20, 20), -1)
        place = (x + 2, y + height + 2)
        cv2.putText(overlay, label, place, _FONT, size, WHITE, 1, cv2.LINE_AA)


def _drawable(text: str) -> str:
    """Replace what is no Unicode, as in names of files on old disks: OpenCV dies of it."""
    return text.encode("utf-8", "replace").decode()


def _fixed(points: NDArray[np.floating]) -> NDArray[np.int32]:
    """Turn corner-based coordinates into OpenCV's: pixel centres, fixed point."""
    return np.round((points - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]],
    *,
    captions: Sequence[str] = (),
    columns: int = 3,
    cell: int = 480,
) -> NDArray[np.uint8]:
    """Put images of any size side by side.

    Args:
        images: At least one, each (H, W, 3) uint8 RGB.
        captions: Written below each image; none, or one per image.
        columns: Images in a row.
        cell: Side of the square that an image is fitted into, in pixels.
    """
    margin, line = 12, 28 if captions else 0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full(
        (margin + rows * (cell + line + margin), margin + columns * (cell + margin), 3),
        245,
        dtype=np.uint8,
    )
    for index, image in enumerate(images):
        small = resized(image, cell)
        height, width = small.shape[:2]
        left = margin + index % columns * (cell + margin)
        top = margin + index // columns * (cell + line + margin)
        y, x = top + (cell - height) // 2, left + (cell - width) // 2
        sheet[y : y + height, x : x + width] = small
        if captions:
            place = (left, top + cell + 20)
            caption = _drawable(captions[index])
            cv2.putText(sheet, caption, place, _FONT, 0.5, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 85) -> bytes:
    """Return an (H, W, 3) uint8 RGB image as JPEG bytes."""
    _, encoded = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return bytes(encoded)


def write_jpeg(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an (H, W, 3) uint8 RGB image as a JPEG file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_jpeg(image))
