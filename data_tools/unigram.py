"""How well ids alone are predicted: the unigram entropy of a corpus, the first mark a model must pass."""

import numpy as np

from olmo_train.data.shards import Corpus

CHUNK = 2**22


def unigram_counts(corpus: Corpus, max_tokens: int | None = None) -> np.ndarray:
    """int64 (vocab_size,): how often each id stands in the corpus; with `max_tokens`, in the front of each file."""
    counts = np.zeros(corpus.manifest.vocab_size, np.int64)
    per_file = None if max_tokens is None else max(1, max_tokens // len(corpus.files))
    for file in corpus.files:
        n = file.entry.tokens if per_file is None else min(file.entry.tokens, per_file)
        for start in range(0, n, CHUNK):
            counts += np.bincount(file.read(start, min(start + CHUNK, n)), minlength=len(counts))
        file.close()
    return counts


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of the distribution that counts are proportional to, in nats per token."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())
