"""Words of UTF-8 text and the hashes of runs of them; compiled."""

import numpy as np

from data_tools.compiled import njit

SEPARATOR, LETTER, ALONE = 0, 1, 2
"""What a character does: ends a word, belongs to one, or is a word by itself (ideographs, kana)."""
BASE = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _mix(x):
    """A bijection of 64 bits (splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def words_of(data, kinds, lower, hashes, starts, ends):
    """Write hash, first and last character (exclusive) of each word of `data` (uint8, valid UTF-8); returns (words, characters).

    `kinds` uint8 and `lower` uint32 by code point; the arrays have room for a word of each byte.
    """
    n = char = i = 0
    current, inside = np.uint64(0), False
    size = len(data)
    while i < size:
        b = np.uint32(data[i])
        if b < 0x80:
            code, i = b, i + 1
        elif b < 0xE0:
            code, i = ((b & 0x1F) << 6) | (data[i + 1] & 0x3F), i + 2
        elif b < 0xF0:
            code, i = ((b & 0x0F) << 12) | (np.uint32(data[i + 1] & 0x3F) << 6) | (data[i + 2] & 0x3F), i + 3
        else:
            code = ((b & 0x07) << 18) | (np.uint32(data[i + 1] & 0x3F) << 12) | (np.uint32(data[i + 2] & 0x3F) << 6)
            code, i = code | (data[i + 3] & 0x3F), i + 4
        kind = kinds[code]
        if kind == LETTER:
            if not inside:
                inside, current = True, np.uint64(0)
                starts[n] = char
            current = _mix(current + np.uint64(lower[code]) + BASE)
        else:
            if inside:
                hashes[n], ends[n] = current, char
                n, inside = n + 1, False
            if kind == ALONE:
                hashes[n], starts[n], ends[n] = _mix(np.uint64(lower[code]) + BASE), char, char + 1
                n += 1
        char += 1
    if inside:
        hashes[n], ends[n] = current, char
        n += 1
    return n, char


@njit(cache=True, nogil=True)
def grams_of(hashes, n, out):
    """Write the key of each run of `n` words, from its first word on; returns how many."""
    power = np.uint64(1)
    for _ in range(n - 1):
        power *= BASE
    key = np.uint64(0)
    for i in range(len(hashes)):
        if i >= n:
            key -= hashes[i - n] * power
        key = key * BASE + hashes[i]
        if i >= n - 1:
            out[i - n + 1] = _mix(key + np.uint64(n))
    return max(len(hashes) - n + 1, 0)


@njit(cache=True, nogil=True)
def maybe_there(keys, filter_bits, found):
    """Write the positions of the keys that the filter (uint8, a power of two of bits) may hold; returns how many."""
    mask = np.uint64(len(filter_bits) * 8 - 1)
    n = 0
    for i in range(len(keys)):
        bit = keys[i] & mask
        if filter_bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7)) & 1:
            found[n] = i
            n += 1
    return n


@njit(cache=True, nogil=True)
def fill_filter(keys, filter_bits):
    """Set the bit of each key."""
    mask = np.uint64(len(filter_bits) * 8 - 1)
    for i in range(len(keys)):
        bit = keys[i] & mask
        filter_bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
