"""Start training jobs by their command line; needs no torch, runs on a login node."""
