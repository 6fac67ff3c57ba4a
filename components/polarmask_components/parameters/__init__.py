"""What the parameters of the pipeline mean: training, its pods, and ray labels."""
