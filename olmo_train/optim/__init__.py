"""Optimizer, learning-rate schedules, and the guard that skips outlier steps."""
