"""`gopher`: the quality and repetition rules of Gopher.

Source: J. Rae et al., Scaling Language Models (2021), tables A1 and section A.1.1; formulas are those of Dolma 1.2's gopher_v1
(python/dolma/taggers/gopher.py), but for paragraphs, which Dolma does not have, and mean_word_length (docs/tag.md).
"""

from data_tools.tag import gram_kernels as gram
from data_tools.tag import scan_kernels as kernel
from data_tools.tag.scanner import Needs, Scanned
from data_tools.tag.tagger import Scores

TOP_GRAMS = (2, 3, 4)
DUPLICATE_GRAMS = (5, 6, 7, 8, 9, 10)
NEEDS = Needs(grams=10, lines=True, paragraphs=True)
_TOP = {n: f"fraction_of_characters_in_most_common_{n}grams" for n in TOP_GRAMS}
_DUPLICATE = {n: f"fraction_of_characters_in_duplicate_{n}grams" for n in DUPLICATE_GRAMS}
TYPES = (
    "character_count",
    "word_count",
    "median_word_length",
    "mean_word_length",
    "symbol_to_word_ratio",
    "fraction_of_words_with_alpha_character",
    "required_word_count",
    "fraction_of_lines_starting_with_bullet_point",
    "fraction_of_lines_ending_with_ellipsis",
    "fraction_of_duplicate_lines",
    "fraction_of_characters_in_duplicate_lines",
    "fraction_of_duplicate_paragraphs",
    "fraction_of_characters_in_duplicate_paragraphs",
    *_TOP.values(),
    *_DUPLICATE.values(),
)


def gopher_scores(found: Scanned) -> Scores:
    """Every type, over the whole document; those of n-grams only if it has n words."""
    state, lines, paragraphs = found.state, found.lines, found.paragraphs
    start, end = found.whole
    words, n_lines = max(state[kernel.WORDS], 1), state[kernel.LINES]
    letters = max(state[kernel.WORD_CHARS], 1)
    scores = {
        "character_count": end,
        "word_count": state[kernel.WORDS],
        "median_word_length": found.median,
        "mean_word_length": state[kernel.WORD_CHARS] / words,
        "symbol_to_word_ratio": state[kernel.SYMBOL_WORDS] / words,
        "fraction_of_words_with_alpha_character": state[kernel.ALPHA_WORDS] / words,
        "required_word_count": state[kernel.REQUIRED_WORDS],
        "fraction_of_lines_starting_with_bullet_point": state[kernel.BULLETS] / n_lines,
        "fraction_of_lines_ending_with_ellipsis": state[kernel.ELLIPSES] / n_lines,
        "fraction_of_duplicate_lines": lines[gram.DUPLICATES] / n_lines,
        "fraction_of_characters_in_duplicate_lines": lines[gram.DUPLICATE_CHARS] / letters,
        "fraction_of_duplicate_paragraphs": paragraphs[gram.REPEATS] / max(state[kernel.PARAGRAPHS], 1),
        "fraction_of_characters_in_duplicate_paragraphs": paragraphs[gram.REPEAT_CHARS] / max(end, 1),
    }
    for n, name in _TOP.items():
        if state[kernel.WORDS] >= n:
            scores[name] = _top_chars(found, n) / letters
    for n, name in _DUPLICATE.items():
        if state[kernel.WORDS] >= n:
            scores[name] = found.grams[n - 1][gram.DUPLICATE_CHARS] / max(_all_chars(found, n), 1)
    return {name: [[start, end, score]] for name, score in scores.items()}


def _top_chars(found: Scanned, n: int) -> int:
    """Characters in all occurrences of the most common n-gram; of those that stand equally often, the one that comes first."""
    row = found.grams[n - 1]
    return row[gram.TOP] * row[gram.TOP_CHARS] if row[gram.TOP] > 1 else sum(found.head[:n])


def _all_chars(found: Scanned, n: int) -> int:
    """Characters of all n-grams: n for each of a word, but less for the first and last n - 1 words."""
    ends = sum((n - 1 - j) * (found.head[j] + found.tail[-1 - j]) for j in range(n - 1))
    return n * found.state[kernel.WORD_CHARS] - ends
