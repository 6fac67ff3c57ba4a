"""polarmask_components."""
