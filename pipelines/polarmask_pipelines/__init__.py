"""polarmask_pipelines."""
