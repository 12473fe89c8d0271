"""The order of ids: frequent ids get short byte codes, so that a suffix array over bytes sorts fewer of them.

A code is 1, 2 or 3 bytes; no code begins another, so the order of code strings is the order of token strings by code. Byte 0 is
no code: it ends a document. Rank r >= 1 is the r-th code.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Codes:
    """The code of each id. rank_V: uint32, 1 .. V. bytes_V3, length_V: uint8."""

    rank_V: np.ndarray
    bytes_V3: np.ndarray
    length_V: np.ndarray


def choose_ranks(counts_V: np.ndarray) -> np.ndarray:
    """uint32 (V,): 1 for the most frequent id, and so on; equal counts by id."""
    order = np.argsort(-counts_V.astype(np.int64), kind="stable")
    ranks = np.empty(len(counts_V), np.uint32)
    ranks[order] = np.arange(1, len(order) + 1, dtype=np.uint32)
    return ranks


def make_codes(rank_V: np.ndarray, weight_of_rank: np.ndarray | None = None) -> Codes:
    """The codes of ranks. `weight_of_rank`: how often the r-th rank stands (any scale), which decides how many codes are short.

    The split changes how many bytes are sorted, not the order.
    """
    n = len(rank_V)
    weights = np.ones(n) if weight_of_rank is None else weight_of_rank.astype(np.float64)
    singles, doubles = _best_split(n, np.concatenate([[0.0], np.cumsum(weights)]))
    rank = np.arange(n, dtype=np.int64)
    table, length = np.zeros((n, 3), np.uint8), np.ones(n, np.uint8)
    table[:, 0] = np.minimum(rank + 1, 255)
    two = (rank >= singles) & (rank < singles + 256 * doubles)
    at = rank[two] - singles
    table[two, 0], table[two, 1], length[two] = 1 + singles + at // 256, at % 256, 2
    three = rank >= singles + 256 * doubles
    at = rank[three] - singles - 256 * doubles
    table[three, 0], table[three, 1], table[three, 2] = 1 + singles + doubles + at // 65536, at // 256 % 256, at % 256
    length[three] = 3
    index = rank_V.astype(np.int64) - 1
    return Codes(rank_V, table[index], length[index])


def _best_split(n: int, total: np.ndarray) -> tuple[int, int]:
    """(first bytes that are codes, first bytes of two-byte codes) with the fewest bytes over all; the rest begin three."""
    best, found = np.inf, (0, 0)
    for doubles in range(256):
        for triples in range(5 if n <= 4 * 65536 else 256):
            singles = 255 - doubles - triples
            if singles < 0 or singles + 256 * doubles + 65536 * triples < n:
                continue
            a, b = min(singles, n), min(singles + 256 * doubles, n)
            cost = total[a] + 2 * (total[b] - total[a]) + 3 * (total[n] - total[b])
            if cost < best:
                best, found = cost, (singles, doubles)
    return found
