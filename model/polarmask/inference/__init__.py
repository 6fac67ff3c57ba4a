"""From an image to instances: the predictor, the model folder, overlays."""
