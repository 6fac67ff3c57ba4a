"""Files, devices, processes and signals."""
