"""The data page: contents, samples and problems of a data set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from polarmask.data.coco import CocoData
from polarmask.data.images import read_image
from polarmask.evaluation.object_sizes import SIDE_EDGES, range_labels
from polarmask.evaluation.recommend import spread
from polarmask.inference.drawing import draw_shapes, shapes_of_annotations
from polarmask.report.charts import bar_chart
from polarmask.report.page import Figure, Tile, make_figures, render

_SAMPLES = 12
_SAMPLE_SIDE = 720
_SIZES_LISTED = 8
_COUNT_EDGES = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, np.inf)


def data_page(
    data_by_split: Mapping[str, CocoData],
    *,
    provenance: Mapping[str, str],
    title: str = "Data",
) -> str:
    """Return a self-contained HTML page below 2 MB.

    Args:
        data_by_split: Loaded splits by name, at least one; checked with `check_pixels`, because
            samples are decoded.
        provenance: Shown as name and value; empty values are left out.
        title: Headline.
    """
    contents = {split: _Contents.of(data) for split, data in data_by_split.items()}
    return render(
        "data.html",
        title=title,
        summary="; ".join(
            f"{split}: {len(held.names):,} images, {len(held.sides):,} objects"
            for split, held in contents.items()
        ),
        provenance=provenance,
        tiles={split: _tiles(contents[split], data) for split, data in data_by_split.items()},
        shared_files=_shared_files(contents),
        side_chart=_histogram(
            {split: held.sides for split, held in contents.items()},
            SIDE_EDGES,
            "square root of an object's area, pixels",
            "share of objects, %",
        ),
        count_chart=_histogram(
            {split: held.annotations for split, held in contents.items()},
            _COUNT_EDGES,
            "annotations in an image",
            "share of images, %",
        ),
        splits=list(data_by_split),
        sizes=_sizes(contents),
        categories=_categories(contents),
        data=[data.summary for data in data_by_split.values()],
        samples={
            split: _samples(data, contents[split], _SAMPLES // len(data_by_split))
            for split, data in data_by_split.items()
        },
    )


@dataclass
class _Contents:
    """Counts over the images of a split, from one pass."""

    names: list[str] = field(default_factory=list)
    annotations: list[int] = field(default_factory=list)
    """In each image, crowd regions too."""
    sides: list[float] = field(default_factory=list)
    """Square root of each object's area."""
    crowds: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    """Images by size."""
    objects: Counter[tuple[int, str]] = field(default_factory=Counter)
    """By id and name of the category; 0 for those without."""

    @classmethod
    def of(cls, data: CocoData) -> "_Contents":
        held = cls()
        keys = [(category.id, category.name) for category in data.categories]
        held.objects.update(dict.fromkeys(keys, 0))
        for image in data.images:
            held.names.append(image.file_name)
            held.annotations.append(len(image.annotations))
            held.sizes[f"{image.width} x {image.height}"] += 1
            objects = [each for each in image.annotations if not each.crowd]
            held.crowds += len(image.annotations) - len(objects)
            held.sides += [float(np.sqrt(each.area)) for each in objects]
            held.objects.update(keys[each.category] for each in objects)
        return held


def _tiles(held: _Contents, data: CocoData) -> list[Tile]:
    empty = held.annotations.count(0)
    return [
        Tile("images", f"{len(held.names):,}", f"{empty:,} without objects" if empty else ""),
        Tile("objects", f"{len(held.sides):,}", f"{held.crowds:,} crowd regions"),
        Tile(
            "objects in an image",
            f"{np.median(held.annotations):g}",
            f"median; {max(held.annotations):,} at most",
        ),
        Tile(
            "left out",
            f"{data.summary.left_out_images:,}",
            f"images; {data.summary.left_out_objects:,} objects",
        ),
    ]


def _shared_files(contents: Mapping[str, _Contents]) -> list[str]:
    """Return files that are in several splits: scores on them are worthless."""
    splits_of = Counter(name for held in contents.values() for name in held.names)
    return sorted(name for name, count in splits_of.items() if count > 1)


def _histogram(
    values: Mapping[str, Sequence[float]], edges: tuple[float, ...], x_label: str, y_label: str
) -> Markup:
    """Draw percentages between edges, without the empty ends."""
    counts = {split: np.histogram(numbers, bins=edges)[0] for split, numbers in values.items()}
    used = np.flatnonzero(sum(counts.values()))
    first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
    labels = [
        f"{low:g}" if high == low + 1 else label
        for label, (low, high) in zip(range_labels(edges), pairwise(edges), strict=True)
    ]
    shares = {
        split: (100 * count / max(1, count.sum()))[first:last].tolist()
        for split, count in counts.items()
    }
    return bar_chart(labels[first:last], shares, x_label=x_label, y_label=y_label)


def _sizes(contents: Mapping[str, _Contents]) -> list[tuple[str, list[int]]]:
    """Return image sizes, the most frequent first, with images per split."""
    total = sum((held.sizes for held in contents.values()), Counter[str]())
    rows = [
        (size, [held.sizes[size] for held in contents.values()]) for size, _ in total.most_common()
    ]
    if len(rows) <= _SIZES_LISTED:
        return rows
    rest = rows[_SIZES_LISTED:]
    others = [sum(count[index] for _, count in rest) for index in range(len(contents))]
    return [*rows[:_SIZES_LISTED], (f"{len(rest):,} other sizes", others)]


def _categories(contents: Mapping[str, _Contents]) -> list[tuple[int, str, list[int], float]]:
    """Return id, name, objects per split and length of the bar in percent, most objects first."""
    counts = {
        key: [held.objects[key] for held in contents.values()]
        for key in {key for held in contents.values() for key in held.objects}
    }
    most = max(map(sum, counts.values()), default=0) or 1
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1]), item[0]))
    return [(*key, count, 100 * sum(count) / most) for key, count in ordered]


def _samples(data: CocoData, held: _Contents, number: int) -> list[Figure]:
    filled = [place for place, count in enumerate(held.annotations) if count]
    return make_figures(
        (
            (
                draw_shapes(
                    read_image(data.image_path(image)),
                    shapes_of_annotations(image, data.categories),
                    side=_SAMPLE_SIDE,
                ),
                image.file_name,
                f"{image.width} x {image.height}, {len(image.annotations)} annotations",
            )
            for image in (data.images[place] for place in spread(filled, number))
        ),
        expected=_SAMPLES,
    )
