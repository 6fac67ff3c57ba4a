"""Preflight: finds in seconds what would fail after an hour."""
