"""`length`: how long a document is."""

from data_tools.tag import scan_kernels as kernel
from data_tools.tag.scanner import Needs, Scanned
from data_tools.tag.tagger import Scores

NEEDS = Needs()
TYPES = ("characters", "bytes", "words", "lines")
TOKENS = "tokens"
"""A type as well, if there is a tokenizer."""


def length_scores(found: Scanned, tokens: int | None) -> Scores:
    """Every type, over the whole document; `tokens` without end-of-text."""
    start, end = found.whole
    scores = dict(zip(TYPES, (end, found.n_bytes, found.state[kernel.WORDS], found.state[kernel.LINES]), strict=True))
    if tokens is not None:
        scores[TOKENS] = tokens
    return {name: [[start, end, score]] for name, score in scores.items()}
