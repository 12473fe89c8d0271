"""How often n-grams stand in one text: an open hash table over ranges of their hashes, so that it never grows; numba.

n-grams are known by 64 bits of hash: of ten million different ones two share a hash with a probability of 3 in a million.

Whoever is unique stays unique when it grows: an n-gram is looked at only where both (n-1)-grams in it stand twice or more. That
leaves out most of them, and loses none that repeats.
"""

import numpy as np

from data_tools.compiled import njit
from data_tools.tag.scan_kernels import BLANK, mix

MOST = 10
"""Longest n-gram."""
DUPLICATES, DUPLICATE_CHARS, REPEATS, REPEAT_CHARS, SOLID_REPEATS, SOLID_REPEAT_CHARS = range(6)
TOP, TOP_FIRST, TOP_CHARS, SECOND = range(6, 10)
"""What a row of totals holds. Of items that stand twice or more: all occurrences and their characters; the occurrences after the
first; these without blank lines. How often the most frequent item stands (of equals: the one seen first), where it first does,
its characters; and how often the next one stands."""
N_TOTALS = 10
FULL = np.uint64(2**64 - 1)
_P = np.uint64(0xD6E8FEB86659FD93)


@njit(cache=True, nogil=True)
def get_bit(bits, i):
    """One bit of a bitmap."""
    return (bits[i >> 3] >> np.uint8(i & 7)) & 1


@njit(cache=True, nogil=True)
def _set_bit(bits, i):
    """Set it; returns 1 if it was not set."""
    mask = np.uint8(1 << (i & 7))
    if bits[i >> 3] & mask:
        return 0
    bits[i >> 3] |= mask
    return 1


@njit(cache=True, nogil=True)
def add(hashes, chars, n, position, marks, table, window):
    """Add the n-grams of a stretch whose first item is number `position` of the text.

    `marks`: bitmaps (of (n-1)-grams, of n-grams) that stand twice or more; the second is written. `table`: (keys uint64, counts
    uint32, firsts uint32, sizes uint32), a power of two of slots. `window`: uint64 (first hash, last hash, slots used, newly
    marked): if the table gets full, the window is halved and what lies beyond it is forgotten.
    """
    keys, counts, firsts, sizes = table
    before, after = marks
    mask = np.uint64(len(keys) - 1)
    limit = len(keys) // 4 * 3
    for i in range(len(hashes) - n + 1):
        where = position + i
        if n > 1 and not (get_bit(before, where) and get_bit(before, where + 1)):
            continue
        key, size = np.uint64(0), np.uint32(0)
        for k in range(n):
            key = key * _P + hashes[i + k]
            size += chars[i + k]
        key = mix(key)
        if key < window[0] or key > window[1]:
            continue
        slot = key & mask
        while counts[slot] and keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if counts[slot]:
            counts[slot] += np.uint32(1)
            if len(after):
                window[3] += np.uint64(_set_bit(after, where) + _set_bit(after, np.int64(firsts[slot])))
            continue
        keys[slot], counts[slot], firsts[slot], sizes[slot] = key, 1, where, size
        window[2] += np.uint64(1)
        while window[2] > np.uint64(limit):
            _halve(table, window)


@njit(cache=True, nogil=True)
def _halve(table, window):
    """Keep the lower half of the window."""
    keys, counts, firsts, sizes = table
    window[1] = window[0] + (window[1] - window[0]) // np.uint64(2)
    rows = np.flatnonzero((counts > 0) & (keys <= window[1]))
    kept = (keys[rows], counts[rows], firsts[rows], sizes[rows])
    counts[:] = 0
    mask = np.uint64(len(keys) - 1)
    for row in range(len(rows)):
        slot = kept[0][row] & mask
        while counts[slot]:
            slot = (slot + np.uint64(1)) & mask
        keys[slot], counts[slot], firsts[slot], sizes[slot] = kept[0][row], kept[1][row], kept[2][row], kept[3][row]
    window[2] = np.uint64(len(rows))


@njit(cache=True, nogil=True)
def total(table, totals):
    """Add the table to a row of totals, and empty it."""
    _, counts, firsts, sizes = table
    for slot in range(len(counts)):
        count = np.int64(counts[slot])
        if not count:
            continue
        counts[slot] = 0
        first, size = np.int64(firsts[slot]), np.int64(sizes[slot] & ~BLANK)
        if count > 1:
            totals[DUPLICATES] += count
            totals[DUPLICATE_CHARS] += count * size
            totals[REPEATS] += count - 1
            totals[REPEAT_CHARS] += (count - 1) * size
            if not sizes[slot] & BLANK:
                totals[SOLID_REPEATS] += count - 1
                totals[SOLID_REPEAT_CHARS] += (count - 1) * size
        if count > totals[TOP] or (count == totals[TOP] and first < totals[TOP_FIRST]):
            totals[SECOND] = max(totals[SECOND], totals[TOP])
            totals[TOP], totals[TOP_FIRST], totals[TOP_CHARS] = count, first, size
        else:
            totals[SECOND] = max(totals[SECOND], count)


@njit(cache=True, nogil=True)
def slots_for(candidates, most):
    """Slots of a table for so many items: a power of two, `most` at most."""
    slots = 64
    while slots < 2 * candidates and slots < most:
        slots *= 2
    return slots


@njit(cache=True, nogil=True)
def count_grams(hashes, chars, up_to, table, marks, totals):
    """Totals of the 1-grams to `up_to`-grams of a text that is held whole; row n - 1 for n. `marks`: two bitmaps of zeros."""
    before, after = marks
    candidates = len(hashes)
    for n in range(1, up_to + 1):
        if candidates == 0 or len(hashes) < n:
            return
        slots = slots_for(candidates, len(table[0]))
        part = (table[0][:slots], table[1][:slots], table[2][:slots], table[3][:slots])
        after[:] = 0
        window = np.zeros(4, np.uint64)
        window[1] = FULL
        while True:
            add(hashes, chars, n, 0, (before, after), part, window)
            total(part, totals[n - 1])
            if window[1] == FULL:
                break
            window[0], window[1], window[2] = window[1] + np.uint64(1), FULL, 0
        candidates = window[3]
        before, after = after, before
