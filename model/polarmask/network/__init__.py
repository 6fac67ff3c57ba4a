"""The network, its losses, and the way from its output to instances."""
