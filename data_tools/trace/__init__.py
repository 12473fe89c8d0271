"""From a generated text back to the training data: suffix arrays over token shards, spans, documents, steps.

Token positions are offsets in a token file of the shards, in tokens. A *place* is one occurrence of a span.
"""
