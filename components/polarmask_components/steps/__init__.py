"""The steps of the pipeline, one in each module."""
