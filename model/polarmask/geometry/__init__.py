"""Polygons, rays and masks: pure functions."""
