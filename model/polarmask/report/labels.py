"""The label page: how well rays describe the objects, and which objects they fit worst."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from polarmask.config.settings import RunConfig
from polarmask.data.coco import Annotation, CocoData, ImageRecord
from polarmask.data.crop import crop_around, cropped
from polarmask.data.images import Pixels, read_image
from polarmask.data.labels import ImageLabels
from polarmask.data.preprocess import learned_hw
from polarmask.geometry.locations import level_points
from polarmask.geometry.rays import decode_rays
from polarmask.inference.drawing import SKY, YELLOW, Shape
from polarmask.labels.image_labels import label_image
from polarmask.labels.store import LabelStore, LabelSummary
from polarmask.report.close_up import draw_close_up
from polarmask.report.page import Figure, Tile, make_figures, render

_IMAGES = 12


def labels_page(
    store: LabelStore,
    data_by_split: Mapping[str, CocoData],
    *,
    config: RunConfig,
    provenance: Mapping[str, str],
    title: str = "Ray labels",
) -> str:
    """Return a self-contained HTML page below 2 MB.

    Args:
        store: Made from this data with this config.
        data_by_split: Splits of the store to show, by name, at least one.
        config: Strides and input size that the labels belong to.
        provenance: Shown as name and value; empty values are left out.
        title: Headline.
    """
    summaries = {split: store.summary(split) for split in data_by_split}
    return render(
        "labels.html",
        title=title,
        summary="; ".join(
            f"{split}: {summary.instances:,} objects, mask IoU of exact rays {summary.mean_iou:.3f}"
            for split, summary in summaries.items()
        ),
        provenance=provenance,
        data=[store.data(split) for split in summaries],
        num_rays=config.model.num_rays,
        tiles={split: _tiles(summary) for split, summary in summaries.items()},
        splits=list(summaries),
        categories=_categories(summaries),
        worst={
            split: _draw_worst(store, data, summaries[split], config, _IMAGES // len(data_by_split))
            for split, data in data_by_split.items()
        },
    )


def _tiles(summary: LabelSummary) -> list[Tile]:
    per_object = summary.positives / summary.instances if summary.instances else 0
    return [
        Tile("objects", f"{summary.instances:,}", f"in {summary.images:,} images"),
        Tile("upper-bound IoU", f"{summary.mean_iou:.3f}", "mean over objects"),
        Tile("positive locations", f"{summary.positives:,}", f"{per_object:.1f} for an object"),
        Tile("without a positive", f"{summary.without_positive:,}", "objects no location learns"),
        Tile("ignored", f"{summary.ignored:,}", "crowd regions and specks"),
    ]


def _categories(
    summaries: Mapping[str, LabelSummary],
) -> list[tuple[str, list[tuple[int, float]], float]]:
    """Return name, (objects, IoU) per split and length of the bar in percent, worst first."""
    names = dict.fromkeys(
        name for summary in summaries.values() for name in summary.per_category_iou
    )
    rows = []
    for name in names:
        cells = [
            (
                summary.per_category_instances.get(name, 0),
                summary.per_category_iou.get(name, float("nan")),
            )
            for summary in summaries.values()
        ]
        objects = sum(count for count, _ in cells)
        if objects:
            mean = sum(count * iou for count, iou in cells if count) / objects
            rows.append((name, cells, 100 * mean))
    return sorted(rows, key=lambda row: row[2])


def _draw_worst(
    store: LabelStore, data: CocoData, summary: LabelSummary, config: RunConfig, number: int
) -> list[Figure]:
    worst = summary.worst[:number]
    wanted = {file_name for file_name, _, _ in worst}
    record_of = {image.file_name: image for image in data.images if image.file_name in wanted}
    drawn = {}
    for file_name, record in record_of.items():  # each image is decoded once
        image = read_image(data.image_path(record))
        # A store of a run with crops has no rays: they are made for each crop.
        labels = None if config.input.crop else store.read(data.split, record.id)
        for place, (name, annotation_id, iou) in enumerate(worst):
            if name == file_name:
                annotation = next(each for each in record.annotations if each.id == annotation_id)
                overlay = _draw(image, record, annotation, labels, config)
                category = data.categories[annotation.category].name
                note = f"annotation {annotation_id} of {file_name}"
                drawn[place] = (overlay, f"{category}, IoU {iou:.2f}", note)
    return make_figures([drawn[place] for place in sorted(drawn)], expected=_IMAGES)


def _draw(
    image: Pixels,
    record: ImageRecord,
    annotation: Annotation,
    labels: ImageLabels | None,
    config: RunConfig,
) -> NDArray[np.uint8]:
    """Draw an object and the rays that the network learns, without labels those of a crop."""
    if labels is None:
        x0, y0, x1, y1 = crop_around(annotation, record, config.input)
        seen = cropped(record, (x0, y0, x1, y1))
        shown = [each for each in seen.annotations if each.id == annotation.id and each.parts]
        if shown:  # else it is so much larger than the crop that nothing is learned of it
            record, image, [annotation] = seen, image[y0:y1, x0:x1], shown
            labels = label_image(record, config)
    shapes = [Shape(annotation.parts, YELLOW, opacity=0.15)]
    rays = None if labels is None else _best_rays(labels, annotation.id, record, config)
    if rays is not None:
        center, polygon = rays
        shapes.append(Shape((polygon,), SKY, opacity=0.25, center=center))
    return draw_close_up(image, annotation, shapes)


def _best_rays(
    labels: ImageLabels, annotation_id: int, record: ImageRecord, config: RunConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return centre and polygon, in pixels of the image, of the object's most central positive."""
    owner_1 = np.flatnonzero(labels.annotation_G == annotation_id)  # none: it is ignored here
    positives = np.flatnonzero(np.isin(labels.object_P, owner_1))
    if not positives.size:
        return None
    best = positives[labels.ray_PR[positives].min(axis=1).argmax()]
    center_12 = level_points(
        torch.from_numpy(labels.location_P3[best : best + 1]), config.model.strides
    )
    polygon_1R2 = decode_rays(center_12, torch.from_numpy(labels.ray_PR[best : best + 1]))
    height, width = learned_hw((record.height, record.width), config.input)
    scale_2 = np.array([record.width / width, record.height / height])
    return center_12[0].numpy() * scale_2, polygon_1R2[0].numpy() * scale_2
