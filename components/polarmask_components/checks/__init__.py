"""Preflight: what would fail after an hour, told in seconds."""
