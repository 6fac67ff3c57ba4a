"""TorchServe: its processes, its management API, its handler."""
