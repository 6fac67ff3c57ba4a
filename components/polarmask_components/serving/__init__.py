"""Putting a model into service, here or in a cluster, and taking it back."""
