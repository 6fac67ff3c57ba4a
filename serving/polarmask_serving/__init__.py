"""polarmask_serving."""
