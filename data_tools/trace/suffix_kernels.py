"""Loops of building and checking a suffix array, compiled by numba.

Sets of tokens and of bytes are bits: bit i is bit i % 64 of word i // 64 (uint64).
"""

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def has(bits, i):
    """Whether bit i is set."""
    return (bits[i >> 6] >> np.uint64(i & 63)) & np.uint64(1) != 0


@numba.njit(cache=True, nogil=True)
def put(bits, i):
    """Set bit i."""
    bits[i >> 6] |= np.uint64(1) << np.uint64(i & 63)


@numba.njit(cache=True, nogil=True)
def put_runs(bits, runs, start):
    """Set the bits of runs [first, end), int64 (n, 2), counted from `start`."""
    for n in range(len(runs)):
        for i in range(runs[n, 0] - start, runs[n, 1] - start):
            put(bits, i)


@numba.njit(cache=True, nogil=True)
def count(tokens, first, heldout, counts_2V):
    """Add how often each id stands in training and in held-out documents; `first`: the first token's number in the part."""
    for t in range(len(tokens)):
        counts_2V[1 if len(heldout) > 0 and has(heldout, first + t) else 0, np.int64(tokens[t])] += 1


@numba.njit(cache=True, nogil=True)
def encode(tokens, first, code_V, ends, document, data, at, begins):
    """Write the codes of tokens from byte `at` on, and 0 after each document; return (document, byte) to go on from.

    `first`: the first token's number in its file; `ends`: ends of documents in the file; `document`: of the first token.
    begins: bits of the bytes that begin a token, which is set here.
    """
    end = np.int64(ends[document])
    for t in range(len(tokens)):
        code = code_V[np.int64(tokens[t])]
        put(begins, at)
        data[at] = code & 255
        data[at + 1] = (code >> 8) & 255
        data[at + 2] = (code >> 16) & 255
        at += np.int64(code >> 24)
        if first + t + 1 == end:
            data[at] = 0
            at += 1
            while document + 1 < len(ends) and np.int64(ends[document]) == end:  # the next that is not empty
                document += 1
            end = np.int64(ends[document])
    return document, at


@numba.njit(cache=True, nogil=True)
def ones(word):
    """Set bits of a word."""
    word -= (word >> np.uint64(1)) & np.uint64(0x5555555555555555)
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True, nogil=True)
def count_before(bits, before):
    """before[w] = set bits in all words before word w."""
    total = 0
    for w in range(len(bits)):
        before[w] = total
        total += ones(bits[w])


@numba.njit(cache=True, nogil=True)
def to_tokens(order, begins, before, heldout, held):
    """Turn sorted bytes into sorted tokens, in place: those of training documents to the front of `order`, others to `held`."""
    a, b = 0, 0
    for i in range(len(order)):
        byte = np.int64(order[i])
        word = begins[byte >> 6]
        bit = np.uint64(byte & 63)
        if (word >> bit) & np.uint64(1) == 0:
            continue
        token = np.int64(before[byte >> 6]) + ones(word & ((np.uint64(1) << bit) - np.uint64(1)))
        if len(heldout) > 0 and has(heldout, token):
            held[b] = token
            b += 1
        else:
            order[a] = token
            a += 1


@numba.njit(cache=True, nogil=True)
def invert(sa, place):
    """place[token] = its number in `sa`; return how many entries are not tokens of the part, or stand twice."""
    wrong = 0
    for i in range(len(sa)):
        token = np.int64(sa[i])
        if token >= len(place) or place[token] != np.uint32(0xFFFFFFFF):
            wrong += 1
        else:
            place[token] = i
    return wrong


@numba.njit(cache=True, nogil=True)
def first_disorder(sa, tokens, rank_V, last, place):
    """First i whose suffix must not stand before that of i + 1, or -1. `last`: bits of the last token of each document.

    Two suffixes that begin with the same token are in order if those without it are, which `place` knows: linear time. Equal
    suffixes, to the end of their documents, may stand either way round.
    """
    for i in range(len(sa) - 1):
        a, b = np.int64(sa[i]), np.int64(sa[i + 1])
        rank_a, rank_b = rank_V[np.int64(tokens[a])], rank_V[np.int64(tokens[b])]
        if rank_a < rank_b:
            continue
        if rank_a > rank_b or (has(last, b) and not has(last, a)):
            return i
        if not has(last, a) and place[a + 1] > place[b + 1]:
            return i
    return -1
