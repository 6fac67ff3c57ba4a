"""TorchServe archives (.mar): build, read, verify."""
