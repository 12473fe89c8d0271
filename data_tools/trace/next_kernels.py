"""Which tokens follow the suffixes of a range, compiled by numba.

`tokens`: the part's slice of the token file. `ends`: ends of the documents of the part, or empty where no end of a document can
stand between a suffix and the token asked for.
"""

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def token_at(tokens: np.ndarray, ends: np.ndarray, position: int, depth: int) -> Any:
    """The token `depth` after `position`; -1 if the document ends before it."""
    limit = len(tokens)
    if len(ends) > 0:
        limit = ends[np.searchsorted(ends, position, side="right")]
    return np.int64(tokens[position + depth]) if position + depth < limit else np.int64(-1)


@numba.njit(cache=True, nogil=True)
def next_ids(
    sa: np.ndarray, tokens: np.ndarray, ends: np.ndarray, first: int, last: int, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, counts): int64, of the tokens `depth` after the suffixes [first, last), which begin with the same `depth` tokens.

    In the range they are sorted, so a run of one token is jumped over in steps that double, then halve: the cost is the logarithm
    of each run.
    """
    ids, counts = np.empty(16, np.int64), np.empty(16, np.int64)
    n, at = 0, first
    while at < last:
        token = token_at(tokens, ends, np.int64(sa[at]), depth)
        low, step = at, 1  # sa[low] has the token
        while low + step < last and token_at(tokens, ends, np.int64(sa[low + step]), depth) == token:
            low += step
            step *= 2
        high = min(low + step, last)  # the first that is known not to have it
        while high - low > 1:
            middle = (low + high) // 2
            if token_at(tokens, ends, np.int64(sa[middle]), depth) == token:
                low = middle
            else:
                high = middle
        if n == len(ids):
            ids, counts = np.append(ids, np.empty(n, np.int64)), np.append(counts, np.empty(n, np.int64))
        ids[n], counts[n] = token, high - at
        n, at = n + 1, high
    return ids[:n], counts[:n]
