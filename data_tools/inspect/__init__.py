"""Questions to documents, attributes and shards."""
