"""The explorer: a run, its checkpoints and its training data in a browser, from this machine alone."""
