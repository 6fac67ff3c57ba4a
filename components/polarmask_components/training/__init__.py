"""Training as child processes here, or as a PyTorchJob in a cluster."""
