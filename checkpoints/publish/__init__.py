"""Releases: assembled from a run, signed, and put on a hub or in a store."""
