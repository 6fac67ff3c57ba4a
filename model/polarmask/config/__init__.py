"""Every setting of a run, and the known runs."""
