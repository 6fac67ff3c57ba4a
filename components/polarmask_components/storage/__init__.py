"""Files in object storage: verified, in parallel, whole or not at all."""
