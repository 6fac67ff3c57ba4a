"""Label images (one integer per object) and folders with one mask file per object.

Which mask belongs to which image
    images/a.tif  masks/a.png                   same name in a folder of masks
    a.tif  a_masks.tif  (or _cp_masks, _label)  same folder, a known ending: Cellpose and others
    a/images/a.png  a/masks/*.png               one file per object: Data Science Bowl 2018
    images/a.png  masks/a/*.png                 the same, masks in a folder named after the image
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from polarmask.data.images import opened, read_size
from polarmask.errors import DataError
from polarmask.geometry.masks import Rle, rles_from_labels
from polarmask.importing.source import Source, SourceImage, SourceObject, image_files, split_of

MASK_FOLDERS = ("masks", "mask", "labels", "label", "gt", "ground_truth", "annotations")
MASK_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", "_seg", "_instances")


def read_label_images(folder: Path, *, category: str, masks: Path | None = None) -> Source:
    """Read images with label images or mask files.

    A label image holds one integer per object and 0 for background. If no label image of the whole
    source holds more than one value, they only tell object from background: then each connected
    region is an object.

    Args:
        folder: Images, and masks unless `masks` is given.
        category: Of all objects: masks have no names.
        masks: Folder of masks whose names are those of the images.

    Raises:
        DataError: No image has a mask.
    """
    images, masks_of = pair_with_masks(folder, masks)
    if not masks_of:
        raise DataError(
            f"{folder}: no image has a mask; put masks of the same names into {folder}/masks, name "
            "them like the image with _masks behind it, or give --masks FOLDER"
        )
    source = Source("label images", ())
    for path in images:
        if path not in masks_of:
            source.leave_out("image", "no_mask", path, "no mask has its name")
    source.images = _read(folder, masks_of, category, source)
    return source


def pair_with_masks(folder: Path, masks: Path | None) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Return all images, and the mask files of each image that has some."""
    files = image_files(folder)
    mask_files = [path for path in files if _is_mask(path, folder)]
    if masks is not None:
        mask_files = image_files(masks)
    of_name: dict[str, list[Path]] = defaultdict(list)
    of_folder: dict[Path, list[Path]] = defaultdict(list)
    for path in mask_files:
        of_name[_plain_stem(path)].append(path)
        of_folder[path.parent].append(path)
    are_masks = {path.resolve() for path in mask_files}  # `masks` may lie in `folder`
    images = [path for path in files if path.resolve() not in are_masks]
    with_name = Counter(image.stem for image in images)
    found = {}
    for image in images:
        for own in _folders_of_one_image(image, masks or folder):
            if own in of_folder:
                found[image] = of_folder[own]
        own_mask = _mask_of_same_name(
            image.relative_to(folder),
            {mask: mask.relative_to(masks or folder) for mask in of_name[image.stem]},
            alone=with_name[image.stem] == 1,
        )
        if image not in found and own_mask:
            found[image] = [own_mask]
    return images, found


def _mask_of_same_name(image: Path, masks: Mapping[Path, Path], *, alone: bool) -> Path | None:
    """Return the mask of an image: the one that shares most of its folders.

    Other folders have images of the same name: the mask of `b/images/1.png` is no mask of
    `a/images/1.png`.

    Args:
        image: Path below the folder of the source.
        masks: Masks of its name, with their paths below the folder of masks.
        alone: Whether no other image has its name, so that a mask in any folder will do.
    """
    folders_of = {
        mask: {part for part in path.parent.parts if part.lower() not in MASK_FOLDERS}
        for mask, path in masks.items()
    }
    fitting = [mask for mask in masks if folders_of[mask] <= set(image.parent.parts)]
    if fitting:
        return max(fitting, key=lambda mask: len(folders_of[mask]))
    splits = None, split_of(image.parent)
    rest = [mask for mask, path in masks.items() if split_of(path.parent) in splits]
    return rest[0] if rest and alone else None


def _is_mask(path: Path, root: Path) -> bool:
    folders = path.relative_to(root).parts[:-1]
    return _plain_stem(path) != path.stem or any(each.lower() in MASK_FOLDERS for each in folders)


def _plain_stem(path: Path) -> str:
    """Return a mask's name without suffix and without the ending that makes it a mask."""
    for ending in MASK_ENDINGS:
        if path.stem.endswith(ending):
            return path.stem.removesuffix(ending)
    return path.stem


def _folders_of_one_image(image: Path, root: Path) -> Iterator[Path]:
    """Yield the folders that would hold one mask file per object of this image."""
    own = image.parent.parent
    for name in MASK_FOLDERS:
        if own.name == image.stem:
            yield own / name  # a/images/a.png  a/masks/*.png
        yield image.parent.parent / name / image.stem  # images/a.png  masks/a/*.png
    yield root / image.stem


def _read(
    folder: Path, masks_of: Mapping[Path, Sequence[Path]], category: str, source: Source
) -> Iterator[SourceImage]:
    binary = all(_is_binary(masks) for masks in masks_of.values())
    if binary:
        source.kind = "mask files, one per object"
        if any(len(masks) == 1 for masks in masks_of.values()):
            source.kind = "binary masks, each connected region an object"
    for path, masks in masks_of.items():
        try:
            height, width = read_size(path)
            rles = _rles_of(masks, (height, width), split_regions=binary and len(masks) == 1)
        except DataError as error:
            source.leave_out("image", "unusable_mask", path, str(error))
            continue
        objects = tuple(SourceObject(category, rle) for rle in rles)
        yield SourceImage(path, width, height, objects, split_of(path.parent.relative_to(folder)))


def _is_binary(masks: Sequence[Path]) -> bool:
    try:
        return all(len(np.unique(read_labels(mask))) <= 2 for mask in masks)
    except DataError:
        return True  # reported when it is read


def _rles_of(masks: Sequence[Path], hw: tuple[int, int], *, split_regions: bool) -> list[Rle]:
    rles = []
    for mask in masks:
        label_HW = read_labels(mask)
        if label_HW.shape != hw:
            raise DataError(
                f"{mask} is {label_HW.shape[1]}x{label_HW.shape[0]}, its image {hw[1]}x{hw[0]}"
            )
        if split_regions:
            regions = cv2.connectedComponents((label_HW > 0).astype(np.uint8))[1]
            label_HW = regions.astype(np.int64)
        rles += rles_from_labels(label_HW)
    return rles


def read_labels(path: Path) -> NDArray[np.integer]:
    """Decode a label image to (H, W) integers, 0 for background.

    Colours count as integers: each is an object, black is background.

    Raises:
        DataError: The file is no image, or its values are no whole numbers or changed by JPEG.
    """
    with opened(path) as image:
        if image.mode in ("LA", "RGBA", "PA"):
            image.load()
            values = np.asarray(image.convert("RGB" if image.mode == "RGBA" else "L"))
        else:
            values = np.asarray(image)
        lossy = image.format in ("JPEG", "MPO")
    if lossy and len(np.unique(values)) > 2:  # each would be an object
        raise DataError(f"{path} is a JPEG, which changes values; save masks as PNG or TIFF")
    if values.ndim == 3:
        red, green, blue = (values[..., channel].astype(np.int64) for channel in range(3))
        return (red << 16) | (green << 8) | blue
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype.kind == "f":
        if (values != np.round(values)).any():
            raise DataError(f"{path} holds fractions; a label image holds one integer per object")
        return values.astype(np.int64)
    return values
