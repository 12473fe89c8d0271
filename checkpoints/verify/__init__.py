"""Whether checkpoints are what they say: every byte, every claim, the series as a whole, and training again between two."""
