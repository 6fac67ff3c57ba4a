"""Envoy in front of TorchServe."""
