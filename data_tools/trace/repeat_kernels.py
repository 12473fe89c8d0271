"""Runs of n tokens by their hashes, and how far occurrences agree, compiled by numba.

`tokens`: the part's slice of the token file. `ends`: ends of its documents. `is_read`: bool, of each document. No run holds
end-of-text (`eos`, -1 if there is none) or goes on from one document to the next. Hashes of different runs may be equal: what is
counted by hash is never too little.
"""

from typing import Any

import numba
import numpy as np

BASE = np.uint64(0x9E3779B97F4A7C15)
FULL = np.uint32(2**32 - 1)


@numba.njit(cache=True, nogil=True)
def mix(x: Any) -> Any:
    """64 bits of an integer. Source: S. Vigna, splitmix64."""
    x = np.uint64(x) + BASE
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def power(n: int) -> Any:
    """BASE to the n-th, modulo 2^64."""
    out = np.uint64(1)
    for _ in range(n):
        out *= BASE
    return out


@numba.njit(cache=True, nogil=True)
def count_runs(tokens: np.ndarray, ends: np.ndarray, is_read: np.ndarray, eos: int, n: int, table: np.ndarray) -> None:
    """Add every run of n tokens to its cell of `table` (uint32, a power of two of them); cells stay at their largest value."""
    mask, oldest = np.uint64(len(table) - 1), power(n)
    first = 0
    for document in range(len(ends)):
        value, held = np.uint64(0), 0
        for t in range(first, ends[document] if is_read[document] else first):
            if tokens[t] == eos:
                value, held = np.uint64(0), 0
                continue
            value = value * BASE + mix(tokens[t])
            held += 1
            if held > n:
                value -= mix(tokens[t - n]) * oldest
            if held >= n:
                cell = mix(value) & mask
                if table[cell] != FULL:
                    table[cell] += np.uint32(1)
        first = ends[document]


@numba.njit(cache=True, nogil=True)
def collect_runs(
    tokens: np.ndarray,
    ends: np.ndarray,
    is_read: np.ndarray,
    eos: int,
    n: int,
    table: np.ndarray,
    least: int,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    part: int,
) -> bool:
    """Add the runs whose cells hold at least `least` to `found`: (hashes, counts, places), an open hash table.

    A place is (part, position of the first token in it). False: three quarters of the table are full.
    """
    keys, counts, places_2 = found
    mask, slots, oldest = np.uint64(len(table) - 1), np.uint64(len(keys) - 1), power(n)
    n_keys, first = 0, 0
    for slot in range(len(keys)):
        n_keys += counts[slot] > 0
    for document in range(len(ends)):
        value, held = np.uint64(0), 0
        for t in range(first, ends[document] if is_read[document] else first):
            if tokens[t] == eos:
                value, held = np.uint64(0), 0
                continue
            value = value * BASE + mix(tokens[t])
            held += 1
            if held > n:
                value -= mix(tokens[t - n]) * oldest
            if held < n:
                continue
            key = mix(value)
            if table[key & mask] < least:
                continue
            slot = (key >> np.uint64(20)) & slots
            while counts[slot] > 0 and keys[slot] != key:
                slot = (slot + np.uint64(1)) & slots
            if counts[slot] == 0:
                n_keys += 1
                if 4 * n_keys > 3 * len(keys):
                    return False
                keys[slot], places_2[slot, 0], places_2[slot, 1] = key, part, t - n + 1
            counts[slot] += 1
        first = ends[document]
    return True


@numba.njit(cache=True, nogil=True)
def agree(tokens: np.ndarray, ends: np.ndarray, eos: int, starts: np.ndarray, model: np.ndarray, sign: int) -> int:
    """How many tokens of `model` every position in `starts` has, going on by `sign` (1 or -1) within its document."""
    most = len(model)
    for i in range(len(starts)):
        if most == 0:
            break
        document = np.searchsorted(ends, starts[i], side="right")
        low, high = (ends[document - 1] if document > 0 else 0), ends[document]
        for k in range(most):
            at = starts[i] + sign * k
            if at < low or at >= high or tokens[at] == eos or tokens[at] != model[k]:
                most = k
                break
    return most


@numba.njit(cache=True, nogil=True)
def count_apart(starts: np.ndarray, length: int) -> int:
    """The most of these sorted positions that can be taken so that none is nearer than `length` to the one before."""
    n, free = 0, -1
    for start in starts:
        if start >= free:
            n, free = n + 1, start + length
    return n
