"""What a model believed of a span at each checkpoint, what would have been without a document, and which documents pull at it."""
