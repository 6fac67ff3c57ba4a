"""Object storage: the only place that imports boto3, and its only retry policy."""
