"""Binary search in suffix arrays, compiled by numba: the hot loops of a query.

`tokens`: the part's slice of the token file. `rank_V`: order of ids. `ends`: ends of the part's documents where end-of-text does
not mark them, else empty. `query`: ranks of the ids looked for; 0 stands for an id beyond the vocabulary and matches nothing.
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def compare(tokens, rank_V, ends, position, query, known):
    """(sign, equal tokens): -1 if the suffix comes before the query, 0 if it begins with it, 1 if it comes after."""
    limit = len(tokens)
    if len(ends) > 0:
        limit = ends[np.searchsorted(ends, position, side="right")]
    for k in range(known, len(query)):
        if position + k >= limit:
            return -1, k
        rank = rank_V[tokens[position + k]]
        if rank != query[k]:
            return (-1 if rank < query[k] else 1), k
    return 0, len(query)


@numba.njit(cache=True, nogil=True)
def lower_bound(sa, tokens, rank_V, ends, query):
    """First suffix that does not come before the query."""
    low, high = 0, len(sa)
    while low < high:
        middle = (low + high) // 2
        sign, _ = compare(tokens, rank_V, ends, np.int64(sa[middle]), query, 0)
        if sign < 0:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def upper_bound(sa, tokens, rank_V, ends, query, first):
    """First suffix at or after `first` that comes after every one that begins with the query."""
    low, high = first, len(sa)
    while low < high:
        middle = (low + high) // 2
        sign, _ = compare(tokens, rank_V, ends, np.int64(sa[middle]), query, 0)
        if sign <= 0:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(cache=True, nogil=True)
def find_range(sa, tokens, rank_V, ends, query):
    """[first, last) of the suffixes that begin with the query."""
    first = lower_bound(sa, tokens, rank_V, ends, query)
    return first, upper_bound(sa, tokens, rank_V, ends, query, first)


@numba.njit(cache=True, nogil=True)
def longest_prefixes(sa, tokens, rank_V, ends, query, out):
    """out[b] = max(out[b], tokens from b on that stand somewhere in the part)."""
    for b in range(len(query)):
        at = lower_bound(sa, tokens, rank_V, ends, query[b:])
        for neighbour in (at - 1, at):
            if 0 <= neighbour < len(sa):
                _, equal = compare(tokens, rank_V, ends, np.int64(sa[neighbour]), query[b:], 0)
                out[b] = max(out[b], equal)
