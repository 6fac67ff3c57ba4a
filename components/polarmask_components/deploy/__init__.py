"""Putting a model into service."""
