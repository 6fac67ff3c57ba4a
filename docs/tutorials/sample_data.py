"""Make the tutorials' sample data from the bundled nuclei: in seconds, and the same each time.

python docs/tutorials/sample_data.py --out cells --masks      label images, and images to count
python docs/tutorials/sample_data.py --out slides --stained   a COCO folder; dark nuclei on white
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from polarmask.geometry.masks import labels_from_rles, rle_from_segmentation

DATA = Path(__file__).parents[2] / "data"
STAIN_BGR = np.array([130, 40, 90])
"""The darkest nuclei of a stained image; its background is white."""


def main() -> None:
    """Write the chosen number of images of each split."""
    parser = argparse.ArgumentParser(
        description=__doc__.split(":")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=60, help="images to learn from, at most 200")
    parser.add_argument("--val", type=int, default=20, help="other images, at most 69")
    parser.add_argument(
        "--masks",
        action="store_true",
        help="write annotated/images, annotated/masks and new instead of a COCO folder",
    )
    parser.add_argument("--stained", action="store_true", help="invert and colour the images")
    options = parser.parse_args()
    train, val = first_images("train", options.train), first_images("val", options.val)
    if options.masks:
        write_images(train, options.out / "annotated/images", "cells", stained=options.stained)
        write_masks(train, options.out / "annotated/masks")
        write_images(val, options.out / "new", "new", stained=options.stained)
    else:
        for split, document in (("train", train), ("val", val)):
            write_images(document, options.out / "images", split, stained=options.stained)
            path = options.out / "annotations" / f"instances_{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))
    for document in (train, val):
        print(f"{len(document['images'])} images, {len(document['annotations'])} nuclei")


def first_images(split: str, number: int) -> dict:
    """Return the COCO document of a split with its first images and their objects only."""
    document = json.loads((DATA / "annotations" / f"instances_{split}.json").read_text())
    images = document["images"][:number]
    ids = {image["id"] for image in images}
    objects = [each for each in document["annotations"] if each["image_id"] in ids]
    return {**document, "images": images, "annotations": objects}


def write_images(document: dict, folder: Path, name: str, *, stained: bool) -> None:
    """Write the images as `NAME-001.png` and so on; the document gets these names, too."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(document["images"], start=1):
        pixels = cv2.imread(str(DATA / "images" / image["file_name"]))
        image["file_name"] = f"{name}-{number:03}.png"
        cv2.imwrite(str(folder / image["file_name"]), stain(pixels) if stained else pixels)


def stain(pixels: np.ndarray) -> np.ndarray:
    """Return a bright-on-black image (H, W, 3) as stained tissue looks: dark purple on white."""
    depth = pixels.max(axis=2, keepdims=True) / max(1, pixels.max())
    return (255 - depth * (255 - STAIN_BGR)).round().astype(np.uint8)


def write_masks(document: dict, folder: Path) -> None:
    """Write a 16-bit label image for each image: 0 is background, n the n-th object."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in document["images"]:
        hw = image["height"], image["width"]
        objects = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        masks = [rle_from_segmentation(each["segmentation"], hw) for each in objects]
        labels = labels_from_rles(masks, hw).astype(np.uint16)
        cv2.imwrite(str(folder / image["file_name"]), labels)


if __name__ == "__main__":
    main()
