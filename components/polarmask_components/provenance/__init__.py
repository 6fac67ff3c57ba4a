"""Which data, which code, and whether either changed since the last pipeline run."""
