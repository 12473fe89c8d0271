"""The order of ids: frequent ids get short byte codes, so that a suffix array over bytes sorts fewer of them.

A code is 1, 2 or 3 bytes; no code begins another, so the order of code strings is the order of token strings by code. Byte 0 is
no code: it ends a document. Rank r >= 1 is the r-th code.
"""

import numpy as np

from olmo_train.data.shards import Corpus

MAX_VOCAB = 255 * 65536
"""Codes of three bytes."""
MAX_CODE = 3
SAMPLE_TOKENS, SAMPLE_PIECE = 2**22, 2**14


def choose_ranks(counts_V: np.ndarray) -> np.ndarray:
    """uint32 (V,): 1 for the most frequent id, and so on; equal counts by id."""
    order = np.argsort(-counts_V.astype(np.int64), kind="stable")
    ranks = np.empty(len(counts_V), np.uint32)
    ranks[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    return ranks


def sample_counts(corpus: Corpus, budget: int = SAMPLE_TOKENS) -> np.ndarray:
    """int64 (V,): how often each id stands in about `budget` tokens, from pieces spread evenly over the corpus.

    The same for every task of a job array, so that all of them sort by the same order.
    """
    counts = np.zeros(corpus.manifest.vocab_size, np.int64)
    ends = np.cumsum([0, *(file.entry.tokens for file in corpus.files)], dtype=np.int64)
    total = int(ends[-1])
    n_pieces = max(1, budget // SAMPLE_PIECE) if total > budget else 1
    for piece in range(n_pieces):
        at = total * piece // n_pieces
        stop = min(total, at + SAMPLE_PIECE) if total > budget else total
        while at < stop:
            number = int(np.searchsorted(ends, at, side="right")) - 1
            last = min(stop, int(ends[number + 1]))
            ids = corpus.files[number].read(at - int(ends[number]), last - int(ends[number]))
            counts += np.bincount(ids.astype(np.int64), minlength=len(counts))
            at = last
    return counts


def make_codes(rank_V: np.ndarray, counts_V: np.ndarray | None = None) -> np.ndarray:
    """uint32 (V,): the code of each id, its first byte lowest, its length in the highest byte.

    `counts_V`, how often each id stands (any scale), decides how many codes are short: how many bytes are sorted, not the order.
    """
    n = len(rank_V)
    index = rank_V.astype(np.int64) - 1
    weights = np.ones(n)
    if counts_V is not None:
        weights[index] = counts_V
    singles, doubles = _best_split(n, np.concatenate([[0.0], np.cumsum(weights)]))
    rank = np.arange(n, dtype=np.int64)
    code = (rank + 1) | 1 << 24
    two = (rank >= singles) & (rank < singles + 256 * doubles)
    at = rank[two] - singles
    code[two] = (1 + singles + at // 256) | (at % 256) << 8 | 2 << 24
    three = rank >= singles + 256 * doubles
    at = rank[three] - singles - 256 * doubles
    code[three] = (1 + singles + doubles + at // 65536) | (at // 256 % 256) << 8 | (at % 256) << 16 | 3 << 24
    return code[index].astype(np.uint32)


def _best_split(n: int, total: np.ndarray) -> tuple[int, int]:
    """(first bytes that are codes, first bytes of two-byte codes) with the fewest bytes over all; the rest begin three."""
    doubles, triples = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    singles = 255 - doubles - triples
    enough = (singles >= 0) & (singles + 256 * doubles + 65536 * triples >= n)
    a, b = np.clip(singles, 0, n), np.clip(singles + 256 * doubles, 0, n)
    cost = np.where(enough, total[a] + 2 * (total[b] - total[a]) + 3 * (total[n] - total[b]), np.inf)
    best = int(np.argmin(cost))
    return int(singles.flat[best]), int(doubles.flat[best])
