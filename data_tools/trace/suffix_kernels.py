"""Loops of building a suffix array, compiled by numba."""

import numba


@numba.njit(cache=True, nogil=True)
def encode(tokens, ends, bytes_V3, length_V, data, token_of_byte):
    """Bytes of all documents, each ended by 0; token_of_byte: the token that a byte begins, or -1."""
    at, first = 0, 0
    for document in range(len(ends)):
        for t in range(first, ends[document]):
            token = tokens[t]
            token_of_byte[at] = t
            for k in range(length_V[token]):
                data[at] = bytes_V3[token, k]
                at += 1
        data[at] = 0
        at += 1
        first = ends[document]


@numba.njit(cache=True, nogil=True)
def split(order, token_of_byte, is_heldout, train, held):
    """Sorted bytes to sorted tokens of the two splits."""
    a, b = 0, 0
    for i in order:
        t = token_of_byte[i]
        if t >= 0:
            if is_heldout[t]:
                held[b] = t
                b += 1
            else:
                train[a] = t
                a += 1
