"""Shingles and MinHash values of a text as its bytes come in, band keys, and connected components, compiled by numba.

A document in work is two arrays: `state` (uint64: hash of the open word, words so far, rolling hash of the last words, 1 while a
word is open, exact hash of all words; then a ring of the hashes of the last `shingle` words) and `least` (uint32, N: the smallest
value of each of N permutations). Both are the same however the text is cut into pieces: memory does not grow with the document.

Words: runs of ASCII letters and digits, letters lower-cased, and of characters beyond ASCII. A character of a script that is
written without spaces (Thai to Myanmar, Khmer, CJK, kana, full-width forms) is a word of its own. All else of ASCII, Latin-1
signs (U+0080-U+00BF), general and CJK punctuation (U+2000-U+207F, U+3000-U+303F) separate.
Source: A. Broder, On the resemblance and containment of documents, 1997 (MinHash); J. Leskovec et al., Mining of massive
datasets, 3.4 (bands).
"""

import numpy as np

from data_tools.compiled import njit

OPEN, WORDS, ROLLING, IS_OPEN, EXACT, RING = 0, 1, 2, 3, 4, 5
_SEED = np.uint64(0x9E3779B97F4A7C15)
_BYTE = np.uint64(0x100000001B3)
BASE = np.uint64(0xD6E8FEB86659FD93)
LETTERS = np.array([ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else 0 for i in range(256)], np.uint64)
"""Of each byte: what it counts as within a word; 0 is no part of one."""
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True, inline="always")
def mix(x):
    """splitmix64's finaliser: every bit of the result depends on every bit of x."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _take(x, multiply, least):
    """One shingle: the smallest of each permutation a*x mod 2^32, a odd. Four bytes wide throughout, so that it is vectorised."""
    low = np.uint32(x >> np.uint64(32))
    for j in range(len(least)):
        value = np.uint32(low * multiply[j])
        value ^= value >> np.uint32(15)
        least[j] = min(least[j], value)


@njit(cache=True, nogil=True)
def _add_word(word, state, out_power, multiply, least):
    """The next word (or token), by its hash."""
    words, size = np.int64(state[WORDS]), len(state) - RING
    place = RING + words % size
    state[ROLLING] = state[ROLLING] * BASE + word - state[place] * out_power
    state[place] = word
    state[WORDS] = np.uint64(words + 1)
    state[EXACT] = mix(state[EXACT] ^ word) + _SEED
    if words + 1 >= size:
        _take(mix(state[ROLLING]), multiply, least)


@njit(cache=True, nogil=True, inline="always")
def _kind(first, second):
    """Of a character beyond ASCII by its first two bytes: 0 separates, 1 part of a word, 2 a word of its own."""
    if first < 0xE0:
        return 0 if first == 0xC2 else 1
    if first < 0xF0:
        if (first == 0xE2 and second <= 0x81) or (first == 0xE3 and second == 0x80):
            return 0
        is_alone = (
            (first == 0xE0 and 0xB8 <= second <= 0xBB)
            or (first == 0xE1 and (second <= 0x82 or second == 0x9E or second == 0x9F))
            or (0xE3 <= first <= 0xE9)
            or (first == 0xEF and 0xA4 <= second <= 0xBF)
        )
        return 2 if is_alone else 1
    return 2 if first == 0xF0 and second >= 0xA0 else 1


@njit(cache=True, nogil=True)
def add_text(data, state, out_power, multiply, least):
    """The next piece of a text as UTF-8; it may end within a word, not within a character."""
    i, n = 0, len(data)
    word, is_open = state[OPEN], state[IS_OPEN] != 0
    while i < n:
        first = data[i]
        byte = LETTERS[first]
        if byte != 0:
            word = ((word if is_open else _SEED) ^ byte) * _BYTE
            is_open = True
            i += 1
            continue
        kind = 0 if first < 0x80 else _kind(first, data[i + 1] if i + 1 < n else 0)
        if kind != 1 and is_open:
            _add_word(mix(word), state, out_power, multiply, least)
            is_open = False
        end = i + (1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4)
        if kind != 0:
            word = word if is_open else _SEED
            for k in range(i, min(end, n)):
                word = (word ^ np.uint64(data[k])) * _BYTE
            is_open = kind == 1
            if kind == 2:
                _add_word(mix(word), state, out_power, multiply, least)
        i = end
    state[OPEN], state[IS_OPEN] = word, np.uint64(1 if is_open else 0)


@njit(cache=True, nogil=True)
def add_tokens(ids, state, out_power, multiply, least):
    """The next token ids of a text."""
    for i in range(len(ids)):
        _add_word(mix(np.uint64(ids[i]) + _SEED), state, out_power, multiply, least)


@njit(cache=True, nogil=True)
def end_text(state, out_power, multiply, least):
    """No more comes: close the open word; the words of a text that has fewer than a shingle are one shingle. Return the words."""
    if state[IS_OPEN] != 0:
        _add_word(mix(state[OPEN]), state, out_power, multiply, least)
        state[IS_OPEN] = np.uint64(0)
    words = int(state[WORDS])
    if 0 < words < len(state) - RING:
        _take(mix(state[EXACT]), multiply, least)
    return words


@njit(cache=True, nogil=True)
def band_keys(least, keys):
    """One key of 64 bits for each of len(keys) bands of the values."""
    rows = len(least) // len(keys)
    for band in range(len(keys)):
        key = mix(np.uint64(band) + _SEED)
        for row in range(rows):
            key = mix(key ^ np.uint64(least[band * rows + row])) + _SEED
        keys[band] = key


@njit(cache=True, nogil=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(cache=True, nogil=True)
def connect_all(ones, others, parent):
    """parent[n] (at first n) becomes the smallest node of the component of n."""
    for i in range(len(ones)):
        one, other = _root(parent, ones[i]), _root(parent, others[i])
        if one < other:
            parent[other] = one
        elif other < one:
            parent[one] = other
    for node in range(len(parent)):
        parent[node] = _root(parent, node)
