"""Token shards, the order in which training sees them, and the loader; numpy only."""
