"""What a set of shards is made of: tokens per document by source, the most frequent ids, the held-out share."""

from typing import Any

import numpy as np

from data_tools.inspect.sketch import Sketch
from olmo_train.data.shards import Corpus, ShardFile

BLOCK = 2**22
"""Tokens, or documents, that are looked at together."""


def shard_stats(corpus: Corpus, n_frequent: int) -> dict[str, Any]:
    """Read all token files and their indexes once, in bounded memory.

    Raises:
        ShardError: a file is missing or damaged.
    """
    lengths: dict[str, Sketch] = {}
    frequencies = np.zeros(corpus.manifest.vocab_size, np.int64)
    text_bytes: dict[str, int | None] = {}
    for file in corpus.files:
        _lengths(file, lengths.setdefault(file.entry.source, Sketch()))
        for start in range(0, file.entry.tokens, BLOCK):
            ids = file.read(start, min(start + BLOCK, file.entry.tokens))
            frequencies += np.bincount(ids, minlength=len(frequencies))
        file.close()
        before = text_bytes.get(file.entry.source, 0)
        size = file.entry.text_bytes
        text_bytes[file.entry.source] = None if before is None or size is None else before + size
    by_source = {}
    for source, row in corpus.manifest.totals().items():
        size = text_bytes[source]
        by_source[source] = {
            **row,
            "heldout_frac": row["heldout_tokens"] / max(row["tokens"], 1),
            "text_bytes": size,
            "bytes_per_token": None if size is None else size / max(row["tokens"] - row["documents"], 1),
            "tokens_per_document": lengths[source].describe(),
        }
    order = np.argsort(-frequencies, kind="stable")[:n_frequent]
    tokens = int(frequencies.sum())
    frequent = [{"id": int(i), "count": int(frequencies[i]), "share": int(frequencies[i]) / max(tokens, 1)} for i in order]
    return {
        "tokens": tokens,
        "ids_used": int((frequencies > 0).sum()),
        "vocab_size": corpus.manifest.vocab_size,
        "by_source": by_source,
        "frequent": [row for row in frequent if row["count"]],
    }


def _lengths(file: ShardFile, sketch: Sketch) -> None:
    starts = file.index.starts
    for first in range(0, len(starts) - 1, BLOCK):
        sketch.add_array(np.diff(starts[first : first + BLOCK + 1].astype(np.int64)))
