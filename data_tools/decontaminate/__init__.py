"""Evaluation sets kept out of training data."""
