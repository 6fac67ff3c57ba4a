"""Other people's annotations to a COCO folder: label images, mask files, YOLO, labelme, COCO."""
