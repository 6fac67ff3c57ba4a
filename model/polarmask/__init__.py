"""polarmask."""
