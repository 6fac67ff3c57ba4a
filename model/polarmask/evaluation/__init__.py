"""Mask AP of models, the gate, inspection of data, measurement of engines."""
