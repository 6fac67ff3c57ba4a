"""The commands of `python -m polarmask_pipelines`, one module per question."""
