"""Page about a data set: what it holds, what it looks like, what is wrong with it."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from polarmask.coco import CocoData, Problem
from polarmask.image_file import read_image
from polarmask.report.charts import bar_chart
from polarmask.report.page import Picture, Tile, make_pictures, render, spread
from polarmask.visualize import draw_shapes, shapes_of_annotations

_SAMPLES = 12
_SAMPLE_SIDE = 720
_SIZES_LISTED = 8
_EXAMPLES = 3
_SIDE_EDGES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, np.inf)
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
    return render(
        "data.html",
        title=title,
        provenance=provenance,
        tiles=_tiles(data_by_split),
        shared_files=_shared_files(data_by_split),
        side_chart=_histogram(
            {
                split: [
                    float(np.sqrt(annotation.area))
                    for image in data.images
                    for annotation in image.annotations
                    if not annotation.crowd
                ]
                for split, data in data_by_split.items()
            },
            _SIDE_EDGES,
            "square root of an object's area, pixels",
            "share of objects, %",
        ),
        count_chart=_histogram(
            {
                split: [len(image.annotations) for image in data.images]
                for split, data in data_by_split.items()
            },
            _COUNT_EDGES,
            "annotations in an image",
            "share of images, %",
        ),
        splits=list(data_by_split),
        sizes=_sizes(data_by_split),
        categories=_categories(data_by_split),
        problems=_problems(data_by_split),
        samples=_samples(data_by_split),
    )


def _tiles(data_by_split: Mapping[str, CocoData]) -> dict[str, list[Tile]]:
    tiles = {}
    for split, data in data_by_split.items():
        annotations = [annotation for image in data.images for annotation in image.annotations]
        crowds = sum(annotation.crowd for annotation in annotations)
        per_image = [len(image.annotations) for image in data.images]
        empty = per_image.count(0)
        tiles[split] = [
            Tile("images", f"{len(data.images):,}", f"{empty:,} without objects" if empty else ""),
            Tile("objects", f"{len(annotations) - crowds:,}", f"{crowds:,} crowd regions"),
            Tile(
                "objects in an image",
                f"{np.median(per_image):g}",
                f"median; {max(per_image):,} at most",
            ),
            Tile(
                "problems",
                f"{len(data.problems):,}",
                "see below" if data.problems else "none found",
            ),
        ]
    return tiles


def _shared_files(data_by_split: Mapping[str, CocoData]) -> list[str]:
    """Return files that more than one split uses: scores on them say nothing."""
    splits_of = Counter(image.file_name for data in data_by_split.values() for image in data.images)
    return sorted(name for name, count in splits_of.items() if count > 1)


def _histogram(
    values: Mapping[str, list[float]], edges: tuple[float, ...], x_label: str, y_label: str
) -> Markup:
    """Draw percentages between edges, without the empty ends."""
    counts = {split: np.histogram(numbers, bins=edges)[0] for split, numbers in values.items()}
    used = np.flatnonzero(sum(counts.values()))
    first, last = (used[0], used[-1] + 1) if used.size else (0, 1)
    labels = [_range_label(low, high) for low, high in pairwise(edges)]
    shares = {
        split: (100 * count / max(1, count.sum()))[first:last].tolist()
        for split, count in counts.items()
    }
    return bar_chart(labels[first:last], shares, x_label=x_label, y_label=y_label)


def _range_label(low: float, high: float) -> str:
    if high == np.inf:
        return f"{low:g}+"
    return f"{low:g}" if high == low + 1 else f"{low:g}-{high:g}"


def _sizes(data_by_split: Mapping[str, CocoData]) -> list[tuple[str, list[int]]]:
    """Return image sizes, the most frequent first, with images per split."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for split, data in data_by_split.items():
        for image in data.images:
            counts[f"{image.width} x {image.height}"][split] += 1
    ordered = sorted(counts.items(), key=lambda item: -item[1].total())
    rows = [(size, [count[split] for split in data_by_split]) for size, count in ordered]
    if len(rows) <= _SIZES_LISTED:
        return rows
    rest = rows[_SIZES_LISTED:]
    others = [sum(count[index] for _, count in rest) for index in range(len(data_by_split))]
    return [*rows[:_SIZES_LISTED], (f"{len(rest):,} other sizes", others)]


def _categories(data_by_split: Mapping[str, CocoData]) -> list[tuple[int, str, list[int], float]]:
    """Return id, name, objects per split and length of the bar in percent, most objects first."""
    counts: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
    for split, data in data_by_split.items():
        for category in data.categories:
            counts[category.id, category.name][split] += 0
        for image in data.images:
            for annotation in image.annotations:
                category = data.categories[annotation.category]
                counts[category.id, category.name][split] += not annotation.crowd
    most = max((count.total() for count in counts.values()), default=0) or 1
    ordered = sorted(counts.items(), key=lambda item: (-item[1].total(), item[0]))
    return [
        (*key, [count[split] for split in data_by_split], 100 * count.total() / most)
        for key, count in ordered
    ]


def _problems(data_by_split: Mapping[str, CocoData]) -> list[tuple[str, str, int, list[Problem]]]:
    """Return split, kind, count and the first examples."""
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for split, data in data_by_split.items():
        for problem in data.problems:
            groups[split, problem.kind].append(problem)
    return [(*key, len(group), group[:_EXAMPLES]) for key, group in groups.items()]


def _samples(data_by_split: Mapping[str, CocoData]) -> dict[str, list[Picture]]:
    each = _SAMPLES // len(data_by_split)
    return {
        split: make_pictures(
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
                for image in spread([image for image in data.images if image.annotations], each)
            ),
            expected=_SAMPLES,
        )
        for split, data in data_by_split.items()
    }
