"""What a COCO folder holds; image files; the network's input."""
