"""Trained models, the champion among them, and archives for pods."""
