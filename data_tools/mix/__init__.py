"""Which documents go on, how often, and without what."""
