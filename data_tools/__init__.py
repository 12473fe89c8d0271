"""Text to token shards and back: gather, train a tokenizer, tokenize, describe, verify, inspect. No torch."""
