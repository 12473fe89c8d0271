"""Stages of data work as independent, idempotent parts: on one machine, or on many that share a file system."""
