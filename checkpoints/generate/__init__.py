"""Text from a checkpoint: `olmo generate`."""
