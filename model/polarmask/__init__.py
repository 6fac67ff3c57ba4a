"""PolarMask: instance segmentation by a centre and rays, from COCO data to masks."""
