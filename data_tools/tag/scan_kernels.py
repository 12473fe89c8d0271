"""One pass over the UTF-8 bytes of a text: its words, lines and paragraphs, and what the rules count; compiled by numba.

A text comes in consecutive chunks that end between two characters. `state` and `hashes` carry what is open from one to the next.
A word is what str.split() gives, a line what str.split("\\n") gives, a paragraph the words of consecutive lines that have some.
"""

import numpy as np

from data_tools.compiled import njit

SPACE, ALPHA = 1, 2
"""Bits of the table of characters: str.isspace, str.isalpha."""
JAVASCRIPT, LOREM_IPSUM, POLICY, CURLY, LONG_WORD, NO_PUNCTUATION, FEW_WORDS, ELLIPSIS = 1, 2, 4, 8, 16, 32, 64, 128
"""Bits of a line; the first three are also those of phrases that end in a state of the automaton."""
BLANK = np.uint32(2**31)
"""Bit of a line's characters: no word is in it."""
MAX_WORD = 1000
"""Characters of a word that C4 bears."""
HISTOGRAM = 1024
"""Lengths of words that are counted; the last cell holds all that are longer."""
FEW, SHORT_LINE = 3, 30

# What `state` holds: totals of the text, then the open word, line and paragraph.
CHARS, WORDS, WORD_CHARS, LINES, NEWLINES, PARAGRAPHS = 0, 1, 2, 3, 4, 5
SYMBOL_WORDS, ALPHA_WORDS, REQUIRED_WORDS, JAVASCRIPT_WORD, SENTENCES, DOCUMENT_FLAGS = 6, 7, 8, 9, 10, 11
BULLETS, ELLIPSES, SOLID_LINES, PUNCTUATED, SHORT_LINES = 12, 13, 14, 15, 16
W_CHARS, W_FLAGS, W_PACKED, W_SENTENCE = 17, 18, 19, 20
L_START, L_WORDS, L_FIRST, L_LAST, L_SOLID, L_DOTS, L_FLAGS, L_SENTENCES, L_ENDED = 21, 22, 23, 24, 25, 26, 27, 28, 29
P_WORDS, P_CHARS, PHRASE = 30, 31, 32
N_STATE = 33
# Bits of the open word: it has a letter; a symbol; its first ten characters are "javascript", in any case.
_LETTER, _SYMBOL, _IS_JAVASCRIPT = 1, 2, 4

_K = np.uint64(0x9E3779B97F4A7C15)
_NEWLINE, _DOT, _STAR, _DASH, _HASH, _ELLIPSIS_CHAR, _CURLY_CHAR = 10, 46, 42, 45, 35, 0x2026, 123
_EXCLAMATION, _QUESTION, _QUOTE, _APOSTROPHE = 33, 63, 34, 39


@njit(cache=True, nogil=True)
def mix(x):
    """64 bits of an integer. Source: S. Vigna, splitmix64."""
    x = np.uint64(x) + _K
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def scan(data, table, classes, automaton, state, hashes, words, lines, paragraphs, histogram, is_last):
    """Add a chunk. Returns how many words, lines and paragraphs ended in it.

    `table`: uint8 by code point. `classes`: uint8 by ASCII character; `automaton`: (int16 (states, classes), uint8 (states)):
    next state, and bits of the phrases that end there. `words`: (hashes, characters), `lines`: (hashes, characters, starts, ends,
    flags), `paragraphs`: (hashes, characters) to write to. `hashes`: of the open word, line, paragraph.

    What changes with every character is held in variables: in arrays, a scan takes five times as long.
    """
    following, found = automaton
    n_words = n_lines = n_paragraphs = 0
    word_hash, line_hash, phrase, chars = hashes[0], hashes[1], state[PHRASE], state[CHARS]
    w_chars, w_flags, w_packed, w_sentence = state[W_CHARS], state[W_FLAGS], state[W_PACKED], state[W_SENTENCE]
    l_start, l_last, l_solid, l_dots = state[L_START], state[L_LAST], state[L_SOLID], state[L_DOTS]
    i, size = 0, len(data)
    while i < size:
        c, i = _character(data, i)
        kind = table[c]
        # one character beyond ASCII has a letter of a phrase as its lower case: the Kelvin sign
        phrase = np.int64(following[phrase, classes[c if c < 0x80 else 107 if c == 0x212A else 0]])
        if found[phrase]:
            state[L_FLAGS] |= np.int64(found[phrase])
            if found[phrase] & JAVASCRIPT and w_chars == 9:
                w_flags |= _IS_JAVASCRIPT
        if chars == l_start:
            state[L_FIRST] = c
        chars += 1
        if not kind & SPACE:
            # one more than the character, or NULs at the beginning would leave a hash at 0
            word_hash, line_hash = (word_hash ^ np.uint64(c + 1)) * _K, (line_hash ^ np.uint64(c + 1)) * _K
            w_packed = ((w_packed << 8) | min(c, 255)) & 0xFFFFFFFF
            w_chars += 1
            if kind & ALPHA:
                w_flags |= _LETTER
                w_sentence = l_dots = 0
            else:
                w_sentence, l_dots = _ends_sentence(c, w_sentence), _dots(c, l_last, l_dots)
                w_flags |= _SYMBOL if c in (_HASH, _ELLIPSIS_CHAR) else 0
                state[L_FLAGS] |= CURLY if c == _CURLY_CHAR else 0
            l_last = l_solid = c
            continue
        if w_chars:
            _end_word(words, n_words, state, hashes, histogram, (word_hash, w_chars, w_flags, w_packed, w_sentence))
            n_words += 1
            word_hash, w_chars, w_flags, w_packed, w_sentence = np.uint64(0), 0, 0, 0, 0
        if c != _NEWLINE:
            line_hash, l_last = (line_hash ^ np.uint64(c + 1)) * _K, c
            continue
        state[NEWLINES] += 1
        n_paragraphs += _end_paragraph(paragraphs, n_paragraphs, state, hashes, False)
        _end_line(lines, n_lines, state, (line_hash, l_start, chars, chars - l_start - 1, l_last, l_solid, l_dots))
        n_lines += 1
        line_hash, l_start, l_last, l_solid, l_dots = np.uint64(0), chars, 0, 0, 0
    if is_last:
        if w_chars:
            _end_word(words, n_words, state, hashes, histogram, (word_hash, w_chars, w_flags, w_packed, w_sentence))
            n_words += 1
        n_paragraphs += _end_paragraph(paragraphs, n_paragraphs, state, hashes, True)
        _end_line(lines, n_lines, state, (line_hash, l_start, chars, chars - l_start, l_last, l_solid, l_dots))
        n_lines += 1
    hashes[0], hashes[1], state[PHRASE], state[CHARS] = word_hash, line_hash, phrase, chars
    state[W_CHARS], state[W_FLAGS], state[W_PACKED], state[W_SENTENCE] = w_chars, w_flags, w_packed, w_sentence
    state[L_START], state[L_LAST], state[L_SOLID], state[L_DOTS] = l_start, l_last, l_solid, l_dots
    state[WORDS] += n_words
    state[LINES] += n_lines
    state[PARAGRAPHS] += n_paragraphs
    return n_words, n_lines, n_paragraphs


@njit(cache=True, nogil=True)
def _character(data, i):
    """The code point at byte i, and where the next begins."""
    c = np.int64(data[i])
    if c < 0x80:
        return c, i + 1
    if c < 0xE0:
        return ((c & 0x1F) << 6) | (np.int64(data[i + 1]) & 0x3F), i + 2
    low = ((np.int64(data[i + 1]) & 0x3F) << 6) | (np.int64(data[i + 2]) & 0x3F)
    if c < 0xF0:
        return ((c & 0x0F) << 12) | low, i + 3
    return ((c & 0x07) << 18) | (low << 6) | (np.int64(data[i + 3]) & 0x3F), i + 4


@njit(cache=True, nogil=True)
def _ends_sentence(c, before):
    """Whether a word that ends in c ends a sentence, if it did so before c: brackets and quotes may follow the mark."""
    if c in (_DOT, _EXCLAMATION, _QUESTION):
        return 1
    return before if c in (_QUOTE, _APOSTROPHE, 41, 93, 0x201D, 0x2019) else 0


@njit(cache=True, nogil=True)
def _dots(c, last, dots):
    """Dots in a row that end in c, which follows the character `last`."""
    if c != _DOT:
        return 0
    return dots + 1 if last == _DOT else 1


@njit(cache=True, nogil=True)
def _is_required(packed):
    """Whether a word of at most 4 bytes is one of Gopher's: the be to of and that have with."""
    return packed in (0x746865, 0x6265, 0x746F, 0x6F66, 0x616E64, 0x74686174, 0x68617665, 0x77697468)


@njit(cache=True, nogil=True)
def _end_word(words, row, state, hashes, histogram, word):
    """Count a word and write it down."""
    value, n_chars, flags, packed, is_sentence = word
    value = mix(value)
    words[0][row], words[1][row] = value, n_chars
    histogram[min(n_chars, HISTOGRAM)] += 1
    state[WORD_CHARS] += n_chars
    state[ALPHA_WORDS] += flags & _LETTER
    state[SYMBOL_WORDS] += (flags & _SYMBOL) >> 1
    if flags & _IS_JAVASCRIPT and n_chars == 10:
        state[JAVASCRIPT_WORD] = 1
    if n_chars <= 4 and _is_required(packed):
        state[REQUIRED_WORDS] += 1
    if n_chars > MAX_WORD:
        state[L_FLAGS] |= LONG_WORD
    state[L_WORDS] += 1
    state[L_SENTENCES] += is_sentence
    state[L_ENDED] = is_sentence
    state[P_CHARS] += n_chars + (1 if state[P_WORDS] else 0)
    state[P_WORDS] += 1
    hashes[2] = hashes[2] * _K + value


@njit(cache=True, nogil=True)
def _end_paragraph(paragraphs, row, state, hashes, is_end):
    """Write the open paragraph down, if this line, which has no word, or the text ends it; returns how many."""
    if not state[P_WORDS] or (state[L_WORDS] and not is_end):
        return 0
    paragraphs[0][row], paragraphs[1][row] = mix(hashes[2]), state[P_CHARS]
    hashes[2] = 0
    state[P_WORDS] = state[P_CHARS] = 0
    return 1


@njit(cache=True, nogil=True)
def _end_line(lines, row, state, line):
    """Count a line and write it down."""
    value, start, end, n_chars, last, solid, dots = line
    n_words, flags = state[L_WORDS], state[L_FLAGS]
    if solid not in (_DOT, _QUESTION, _EXCLAMATION, _QUOTE):
        flags |= NO_PUNCTUATION
    if n_words < FEW:
        flags |= FEW_WORDS
    if dots >= 3:
        flags |= ELLIPSIS
    state[DOCUMENT_FLAGS] |= flags
    if not flags & ~(LOREM_IPSUM | CURLY):  # a line that C4 keeps
        state[SENTENCES] += state[L_SENTENCES] + (0 if state[L_ENDED] else 1)
    if n_chars > 0:
        state[BULLETS] += state[L_FIRST] in (_STAR, _DASH)
        state[ELLIPSES] += last == _ELLIPSIS_CHAR
    if n_words:
        state[SOLID_LINES] += 1
        state[PUNCTUATED] += last in (_DOT, _EXCLAMATION, _QUESTION, _QUOTE, _APOSTROPHE)
        state[SHORT_LINES] += n_chars <= SHORT_LINE
    lines[0][row] = mix(value)
    lines[1][row] = np.uint32(n_chars) | (np.uint32(0) if n_words else BLANK)
    lines[2][row], lines[3][row], lines[4][row] = start, end, flags
    state[L_WORDS] = state[L_FLAGS] = state[L_SENTENCES] = state[L_ENDED] = 0


@njit(cache=True, nogil=True)
def length_at(histogram, rank):
    """Length of the word of this rank, from 0, in order of length; HISTOGRAM: it has at least so many characters."""
    for length in range(len(histogram)):
        rank -= histogram[length]
        if rank < 0:
            return length
    return HISTOGRAM


@njit(cache=True, nogil=True)
def write_spans(lines, n_lines, bit, pending, merge, out):
    """Write `[start,end,1.0],` for each line that has the bit, as JSON; returns the bytes written.

    `pending`: (start, end) of the span not yet written, start -1: none. `merge`: lines next to each other share one.
    """
    at = 0
    for row in range(n_lines):
        if not lines[4][row] & bit:
            continue
        if pending[0] >= 0:
            if merge and pending[1] == lines[2][row]:
                pending[1] = lines[3][row]
                continue
            at = write_span(pending, out, at)
        pending[0], pending[1] = lines[2][row], lines[3][row]
    return at


@njit(cache=True, nogil=True)
def write_span(span, out, at):
    """One span; returns where the next begins."""
    out[at] = 91
    at = _write_number(span[0], out, at + 1)
    out[at] = 44
    at = _write_number(span[1], out, at + 1)
    out[at], out[at + 1], out[at + 2], out[at + 3], out[at + 4], out[at + 5] = 44, 49, 46, 48, 93, 44
    return at + 6


@njit(cache=True, nogil=True)
def _write_number(number, out, at):
    digits, rest = 1, number
    while rest >= 10:
        rest //= 10
        digits += 1
    for k in range(digits):
        out[at + digits - 1 - k] = 48 + number % 10
        number //= 10
    return at + digits
