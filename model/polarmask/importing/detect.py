"""Which format a folder has, and its reader."""

from pathlib import Path
from typing import Literal, get_args

from polarmask.errors import DataError
from polarmask.importing.coco_export import find_coco_files, read_coco
from polarmask.importing.label_images import read_label_images
from polarmask.importing.labelme import is_labelme, read_labelme
from polarmask.importing.source import Source, visible_files
from polarmask.importing.yolo import is_yolo, read_yolo

Format = Literal["auto", "masks", "yolo", "labelme", "coco"]
FORMATS: tuple[Format, ...] = get_args(Format)


def read_source(
    folder: Path, *, kind: Format = "auto", category: str = "object", masks: Path | None = None
) -> Source:
    """Read a folder of images and annotations.

    Args:
        folder: Images and annotations.
        kind: Its format; `auto` takes the first of labelme, COCO, YOLO and masks that it holds.
        category: Of all objects, for masks.
        masks: Folder of masks, if they are elsewhere.

    Raises:
        DataError: The folder does not exist or holds nothing of that format.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; give the folder with your images and annotations")
    if kind == "auto":
        kind = "masks" if masks is not None else _detect(folder)
    if kind == "labelme":
        return read_labelme(folder)
    if kind == "yolo":
        return read_yolo(folder)
    if kind == "coco":
        files = find_coco_files(folder)
        if not files:
            raise DataError(f"{folder}: no JSON file holds COCO images and outlines")
        return read_coco(files)
    return read_label_images(folder, category=category, masks=masks)


def _detect(folder: Path) -> Format:
    json_files = [path for path in visible_files(folder) if path.suffix.lower() == ".json"]
    if any(is_labelme(path) for path in json_files):
        return "labelme"
    if json_files:
        return "coco"
    return "yolo" if is_yolo(folder) else "masks"
