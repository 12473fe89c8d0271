"""Documents and paragraphs that stand more than once."""
