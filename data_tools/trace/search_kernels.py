"""Binary search in suffix arrays, compiled by numba: the hot loops of a query.

`sa`, `top`: of one split of a part. `tokens`: the part's slice of the token file. `rank_V`: the order of ids. `ends`: ends of the
part's documents where end-of-text does not mark them, else empty. `query`: ranks of the ids looked for; 0 stands for what matches
nothing (end-of-text, ids beyond the vocabulary). A search looks for query[start:stop].

A *bracket* is (low, high, low_equal, high_equal): the suffix looked for is in [low, high]; the tokens that the query shares with
the suffix before `low` and with the one at `high` (0 where there is none). What lies between shares at least the fewer of the
two, so no comparison begins anew.
Source: U. Manber, G. Myers, Suffix arrays: a new method for on-line string searches, section 3.
"""

import numba
import numpy as np

from data_tools.trace.index_folder import KEY, STRIDE


@numba.njit(cache=True, nogil=True)
def compare(tokens, rank_V, ends, position, query, start, stop, known):
    """(sign, equal tokens): -1 if the suffix comes before the query, 0 if it begins with it, 1 if it comes after.

    Nothing is read outside the arrays, whatever a damaged index says; what it leads to is checked where a place is given out.
    """
    limit = len(tokens)
    if position >= limit:
        return -1, known
    if len(ends) > 0:
        limit = ends[np.searchsorted(ends, position, side="right")]
    for k in range(known, stop - start):
        if position + k >= limit:
            return -1, k
        token = tokens[position + k]
        if token >= len(rank_V):
            return 1, k
        rank = rank_V[token]
        if rank != query[start + k]:
            return (-1 if rank < query[start + k] else 1), k
    return 0, stop - start


@numba.njit(cache=True, nogil=True)
def compare_key(top, row, query, start, stop):
    """The same of a row of the table; 2 if the table does not tell."""
    n = min(KEY, stop - start)
    for k in range(n):
        rank = np.int64(top[row, k])
        if rank != query[start + k] or rank == 0:
            return (-1 if rank == 0 or rank < query[start + k] else 1), k
    return (0 if stop - start <= KEY else 2), n


@numba.njit(cache=True, nogil=True)
def bracket(sa, top, query, start, stop, upper):
    """What the table tells: a bracket of at most STRIDE suffixes, unless more rows begin with the first KEY tokens.

    `upper`: look for the first suffix after all that begin with the query, instead of the first of them.
    """
    first, last, low_equal, high_equal = 0, len(top), 0, 0
    while first < last:
        middle = (first + last) // 2
        sign, equal = compare_key(top, middle, query, start, stop)
        if sign == 2:
            return _tied(sa, top, query, start, stop, (first, last, low_equal, high_equal), middle)
        if sign < 0 or (upper and sign == 0):
            first, low_equal = middle + 1, equal
        else:
            last, high_equal = middle, equal
    return _of_rows(sa, first, last, low_equal, high_equal)


@numba.njit(cache=True, nogil=True)
def _tied(sa, top, query, start, stop, known, tied):
    """Row `tied` begins with the first KEY tokens: find the rows before and after all that do."""
    first, last, low_equal, high_equal = known
    inner = tied
    while first < inner:
        middle = (first + inner) // 2
        sign, equal = compare_key(top, middle, query, start, stop)
        if sign == 2:
            inner = middle
        else:
            first, low_equal = middle + 1, equal
    inner = tied + 1
    while inner < last:
        middle = (inner + last) // 2
        sign, equal = compare_key(top, middle, query, start, stop)
        if sign == 2:
            inner = middle + 1
        else:
            last, high_equal = middle, equal
    return _of_rows(sa, first, last, low_equal, high_equal)


@numba.njit(cache=True, nogil=True)
def _of_rows(sa, first, last, low_equal, high_equal):
    low = (first - 1) * STRIDE + 1 if first > 0 else 0
    return low, min(last * STRIDE, len(sa)), low_equal, high_equal


@numba.njit(cache=True, nogil=True)
def narrow(sa, tokens, rank_V, ends, query, start, stop, upper, at):
    """One comparison: a bracket of half the suffixes."""
    low, high, low_equal, high_equal = at
    middle = (low + high) // 2
    known = min(low_equal, high_equal)
    sign, equal = compare(tokens, rank_V, ends, np.int64(sa[middle]), query, start, stop, known)
    if sign < 0 or (upper and sign == 0):
        return middle + 1, high, equal, high_equal
    return low, middle, low_equal, equal


@numba.njit(cache=True, nogil=True)
def begin_all(sa, top, query, spans_N2, upper, at_N4):
    """The brackets of searches for query[spans[n, 0]:spans[n, 1]] that the table gives."""
    for n in range(len(spans_N2)):
        at = bracket(sa, top, query, spans_N2[n, 0], spans_N2[n, 1], upper)
        for i in range(4):
            at_N4[n, i] = at[i]


@numba.njit(cache=True, nogil=True)
def narrow_all(sa, top, tokens, rank_V, ends, query, spans_N2, upper, at_N4):
    """One comparison of each search that has not ended; return a number that means nothing.

    What all will compare is read first, in loops whose reads do not wait for each other, since a comparison waits for memory. The
    number keeps the compiler from leaving these reads out. Measured: 1.3 instead of 3.0 ms for 200 tokens in 4 parts.
    """
    positions, touched = np.zeros(len(at_N4), np.int64), 0
    for n in range(len(at_N4)):
        if at_N4[n, 0] < at_N4[n, 1]:
            positions[n] = np.int64(sa[(at_N4[n, 0] + at_N4[n, 1]) // 2]) + min(at_N4[n, 2], at_N4[n, 3])
    for n in range(len(at_N4)):
        if at_N4[n, 0] < at_N4[n, 1] and positions[n] < len(tokens):
            touched += np.int64(tokens[positions[n]])
    for n in range(len(at_N4)):
        at = (at_N4[n, 0], at_N4[n, 1], at_N4[n, 2], at_N4[n, 3])
        if at[0] < at[1]:
            at = narrow(sa, tokens, rank_V, ends, query, spans_N2[n, 0], spans_N2[n, 1], upper, at)
            for i in range(4):
                at_N4[n, i] = at[i]
    return touched


@numba.njit(cache=True, nogil=True)
def search_all(sa, top, tokens, rank_V, ends, query, spans_N2, upper, at_N4):
    """Brackets that are narrowed to a place, low = high; return a number that means nothing."""
    begin_all(sa, top, query, spans_N2, upper, at_N4)
    touched, is_open = 0, True
    while is_open:
        touched += narrow_all(sa, top, tokens, rank_V, ends, query, spans_N2, upper, at_N4)
        is_open = False
        for n in range(len(at_N4)):
            is_open |= at_N4[n, 0] < at_N4[n, 1]
    return touched


@numba.njit(cache=True, nogil=True)
def find_ranges(sa, top, tokens, rank_V, ends, query, spans_N2, out_N2):
    """out[n] = [first, last) of the suffixes that begin with query[spans[n, 0]:spans[n, 1]]."""
    at_N4, touched = np.empty((len(spans_N2), 4), np.int64), 0
    for upper in (False, True):
        touched += search_all(sa, top, tokens, rank_V, ends, query, spans_N2, upper, at_N4)
        for n in range(len(spans_N2)):
            out_N2[n, 1 if upper else 0] = at_N4[n, 0]
    return touched


@numba.njit(cache=True, nogil=True)
def longest_prefixes(sa, top, tokens, rank_V, ends, query, starts, out):
    """out[n] = max(out[n], tokens from starts[n] on that stand somewhere in the part)."""
    spans_N2, at_N4 = np.empty((len(starts), 2), np.int64), np.empty((len(starts), 4), np.int64)
    for n in range(len(starts)):
        spans_N2[n, 0], spans_N2[n, 1] = starts[n], len(query)
    touched = search_all(sa, top, tokens, rank_V, ends, query, spans_N2, False, at_N4)
    for n in range(len(starts)):
        out[n] = max(out[n], at_N4[n, 2], at_N4[n, 3])
    return touched
