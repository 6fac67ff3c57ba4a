"""The way to Kubernetes, patient with its bad moments."""
