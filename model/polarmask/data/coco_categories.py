"""COCO's 80 categories, for models that come without annotations to read them from."""

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from polarmask.data.coco import Category

COCO_CATEGORIES = tuple(
    Category(id=number, name=name)
    for number, name in enumerate(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
    if name not in {"__background__", "N/A"}  # ids that the data set does not use
)
"""In the order of the network's outputs; ids have gaps."""
