"""From an image to instances: the predictor and the model folder."""
