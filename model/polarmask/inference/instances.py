"""What was found in an image, and what people make of it: masks, tables, pictures, files.

Importing this module takes numpy alone, so clients of servers have the same class. Methods import
what they need: masks pycocotools and OpenCV, pictures Pillow, too.

Dimension key
    N: instances    K: further parts of an instance    R: rays    2: (x, y) in pixels of the image
"""

import base64
import csv
import html
import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polarmask.errors import ConfigError, DataError
from polarmask.system.files import atomic_path

if TYPE_CHECKING:
    import supervision

    from polarmask.data.images import Pixels
    from polarmask.geometry.masks import Raster, Rle
    from polarmask.inference.drawing import Shape
    from polarmask.inference.measures import ObjectMeasures


@dataclass(frozen=True, eq=False, repr=False)
class Instances:
    """The instances of one image, best score first, in pixels of the given image.

    Attributes:
        image_hw: Rows and columns of the image.
        polygons: (N, R, 2) float32, vertices in ray order (clockwise from +x), clipped; of an
            instance in several parts the best one.
        boxes_xywh: (N, 4) float32, left, top, width, height.
        scores: (N,) float32 in [0, 1].
        category_ids: (N,) int64, ids of the data's categories.
        category_names: One name per instance.
        centers: (N, 2) float32, where the rays start; NaN if a server was not asked for them.
        ray_lengths: (N, R) float32, from the centers; not clipped. (N, 0) likewise.
        further_parts: (K, R, 2) float32 by row, for instances with more parts than `polygons` has.
        raster: How polygons become masks.
        image: The image or its file, for `plot`; None if it was not kept.
        min_score: Instances with lower scores were left out.
        cut_below: Below this score the limit of instances of an image, or of a tile of it, may
            have left some out; 0 if it was not reached.
        warnings: One line for each reason why instances may be missing, by its kind.
        served_by: Name and version of the served model that found them; None without a server.
    """

    image_hw: tuple[int, int]
    polygons: NDArray[np.float32]
    boxes_xywh: NDArray[np.float32]
    scores: NDArray[np.float32]
    category_ids: NDArray[np.int64]
    category_names: tuple[str, ...]
    centers: NDArray[np.float32]
    ray_lengths: NDArray[np.float32]
    further_parts: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    raster: "Raster" = "exact"
    image: "Pixels | Path | None" = None
    min_score: float = 0.0
    cut_below: float = 0.0
    warnings: Mapping[str, str] = field(default_factory=dict)
    served_by: tuple[str, str] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        names = ", ".join(f"{n} {name}" for name, n in Counter(self.category_names).most_common())
        size = f"{self.image_hw[1]}x{self.image_hw[0]} pixels"
        if not len(self):
            return f"Instances(nothing in {size})"
        scores = f"{self.scores.min():.2f} to {self.scores.max():.2f}"
        return f"Instances({names} in {size}, scores {scores})"

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[Any]) -> "Instances":
        """Return some of the instances, also of one: a row, a slice, rows, or `scores > 0.5`.

        Raises:
            IndexError: No such row.
        """
        return self.select(np.atleast_1d(np.arange(len(self))[rows]).tolist())

    @property
    def boxes(self) -> NDArray[np.float32]:
        """(N, 4) float32: left, top, right, bottom."""
        corner_N2, size_N2 = self.boxes_xywh[:, :2], self.boxes_xywh[:, 2:]
        return np.concatenate([corner_N2, corner_N2 + size_N2], axis=1)

    def masks(self) -> NDArray[np.bool_]:
        """Return (N, H, W) bool; they may overlap."""
        from polarmask.geometry.masks import bitmap_from_rle

        bitmaps = [bitmap_from_rle(rle) for rle in self.rle()]
        return np.array(bitmaps, dtype=bool).reshape(len(self), *self.image_hw)

    def labels(self) -> NDArray[np.int32]:
        """Return (H, W): 0 for background, n for the n-th instance; of two the better score."""
        from polarmask.geometry.masks import labels_from_rles

        return labels_from_rles(self.rle(), self.image_hw)

    def plot(self, *, rays: bool = False) -> NDArray[np.uint8]:
        """Return the image with the instances drawn in, (H, W, 3) uint8 RGB.

        Raises:
            DataError: The image was not kept, or its file can't be read.
        """
        from polarmask.data.images import read_image
        from polarmask.inference.drawing import draw_shapes

        if self.image is None:
            raise DataError("the image was not kept; use draw_shapes(image, found.shapes())")
        kept = self.image
        image = read_image(kept, upright=True) if isinstance(kept, Path) else kept
        return draw_shapes(image, self.shapes(rays=rays))

    def _repr_html_(self) -> str:
        """Show the overlay in notebooks."""
        picture = "" if self.image is None else f'<br><img src="{_data_url(self.plot())}">'
        return html.escape(repr(self)) + picture

    def shapes(self, *, min_score: float = 0.0, rays: bool = False) -> "list[Shape]":
        """Return shapes to draw, labelled with score and, where they differ, category.

        Args:
            min_score: Leave out lower scores.
            rays: Draw centre and rays, too.
        """
        from polarmask.inference.drawing import Shape, colours_of

        kept = np.flatnonzero(self.scores >= min_score).tolist()
        colours = colours_of([int(self.category_ids[row]) for row in kept])
        names = [f"{name} " for name in self.category_names]
        if len(set(names)) < 2:
            names = [""] * len(names)
        return [
            Shape(
                polygons=tuple(self.parts(row)),
                colour=colour,
                label=f"{names[row]}{self.scores[row]:.2f}",
                center=self.centers[row] if rays else None,
            )
            for row, colour in zip(kept, colours, strict=True)
        ]

    def parts(self, row: int) -> list[NDArray[np.float32]]:
        """Return all polygons (R, 2) of one instance, the best first."""
        return [self.polygons[row], *self.further_parts.get(row, ())]

    def select(self, rows: Sequence[int]) -> "Instances":
        """Return some of the instances, in the order given."""
        index = np.asarray(rows, dtype=np.intp)
        return replace(
            self,
            polygons=self.polygons[index],
            boxes_xywh=self.boxes_xywh[index],
            scores=self.scores[index],
            category_ids=self.category_ids[index],
            category_names=tuple(self.category_names[row] for row in rows),
            centers=self.centers[index],
            ray_lengths=self.ray_lengths[index],
            further_parts={
                new: self.further_parts[old]
                for new, old in enumerate(rows)
                if old in self.further_parts
            },
        )

    def rle(self) -> "list[Rle]":
        """Return each instance's mask as compressed COCO RLE: the union of its polygons."""
        return list(self._masks)

    @cached_property
    def _masks(self) -> "list[Rle]":
        """Cached, and pickled with the object."""
        from polarmask.geometry.masks import RASTERS, united

        rasterise = RASTERS[self.raster]
        masks = rasterise(self.polygons, self.image_hw)
        for row, parts in self.further_parts.items():
            masks[row] = united([masks[row], *rasterise(parts, self.image_hw)])
        return masks

    def measure(self) -> "list[ObjectMeasures]":
        """Measure each instance's mask, best score first; one without a pixel has area 0."""
        from polarmask.inference.measures import measure_mask

        return [
            measure_mask(
                rle,
                self.boxes_xywh[row],
                number=row + 1,
                category=self.category_names[row],
                score=float(self.scores[row]),
            )
            for row, rle in enumerate(self.rle())
        ]

    def geojson(self) -> dict[str, Any]:
        """Return a FeatureCollection as QuPath and GIS programs read it, in pixels."""
        return {
            "type": "FeatureCollection",
            "features": [_feature(self, n) for n in range(len(self))],
        }

    def coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO's results format, one entry per instance, as evaluators read it."""
        return [
            {
                "image_id": image_id,
                "category_id": int(self.category_ids[row]),
                "segmentation": rle,
                "bbox": [round(value, 2) for value in self.boxes_xywh[row].tolist()],
                "score": round(float(self.scores[row]), 6),
            }
            for row, rle in enumerate(self.rle())
        ]

    def to_supervision(self) -> "supervision.Detections":
        """Return the instances as `supervision.Detections`, in the same order.

        `xyxy` is (N, 4) in pixels, `mask` (N, H, W) bool, `confidence` (N,) in [0, 1], `class_id`
        (N,) the ids of the data's categories, and `data["class_name"]` (N,) their names.

        Raises:
            ConfigError: The package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise ConfigError(
                f"to_supervision needs the package supervision ({error}); pip install supervision"
            ) from error
        return Detections(
            xyxy=self.boxes,
            mask=self.masks(),
            confidence=self.scores,
            class_id=self.category_ids,
            data={"class_name": np.array(self.category_names, dtype=str)},
        )

    def save(self, path: Path | str) -> None:
        """Write a file in the format that its suffix names.

        `.png` and `.tif` are label images, `.csv` a table of objects, `.geojson` polygons, `.json`
        COCO results, `.zip` ImageJ ROIs, `.jpg` the overlay.

        Raises:
            DataError: Another suffix, more instances than a PNG can count, or no image to draw in.
        """
        path = Path(path)
        write = _WRITERS.get(path.suffix.lower())
        if write is None:
            known = ", ".join(_WRITERS)
            raise DataError(f"{path}: no format is called {path.suffix!r}; choose one of {known}")
        data = write(self)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)


def _feature(found: Instances, row: int) -> dict[str, Any]:
    rings = [[_closed(part)] for part in found.parts(row)]
    single = len(rings) == 1
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon" if single else "MultiPolygon",
            "coordinates": rings[0] if single else rings,
        },
        "properties": {
            "objectType": "annotation",
            "classification": {"name": found.category_names[row]},
            "score": round(float(found.scores[row]), 4),
        },
    }


def _closed(part: NDArray[np.float32]) -> list[list[float]]:
    vertices: list[list[float]] = np.round(part.astype(np.float64), 2).tolist()
    return [*vertices, vertices[0]]


def _png(found: Instances) -> bytes:
    if len(found) > np.iinfo(np.uint16).max:
        raise DataError(f"a PNG counts to 65,535 and there are {len(found):,} instances; use .tif")
    return _encoded(".png", found.labels().astype(np.uint16))


def _tif(found: Instances) -> bytes:
    fits = len(found) <= np.iinfo(np.uint16).max
    return _encoded(".tif", found.labels().astype(np.uint16 if fits else np.int32))


def _encoded(suffix: str, image: NDArray[Any]) -> bytes:
    import cv2

    channels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return bytes(cv2.imencode(suffix, channels)[1])


def _csv(found: Instances) -> bytes:
    from polarmask.inference.measures import TABLE_COLUMNS

    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, TABLE_COLUMNS)
    writer.writeheader()
    writer.writerows(asdict(row) for row in found.measure())
    return text.getvalue().encode()


def _geojson(found: Instances) -> bytes:
    return json.dumps(found.geojson()).encode()


def _json(found: Instances) -> bytes:
    return json.dumps(found.coco(image_id=1)).encode()


def _rois(found: Instances) -> bytes:
    """Return a ZIP with one polygon per part, for ImageJ's ROI manager."""
    from roifile import ImagejRoi

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for row, category in enumerate(found.category_names):
            for part, polygon in enumerate(found.parts(row)):
                name = f"{row + 1:05}-{part}-{category}" if part else f"{row + 1:05}-{category}"
                roi = ImagejRoi.frompoints(polygon, name=name)
                file.writestr(f"{name.replace('/', '_')}.roi", roi.tobytes())
    return archive.getvalue()


def _overlay(found: Instances) -> bytes:
    return _encoded(".jpg", found.plot())


def _data_url(image: NDArray[np.uint8]) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(_encoded('.jpg', image)).decode()}"


_WRITERS: dict[str, Callable[[Instances], bytes]] = {
    ".png": _png,
    ".tif": _tif,
    ".tiff": _tif,
    ".csv": _csv,
    ".geojson": _geojson,
    ".json": _json,
    ".zip": _rois,
    ".jpg": _overlay,
}
