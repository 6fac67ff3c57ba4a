"""Where a model comes from: a folder, run, checkpoint, archive, server, or the paper's code."""
