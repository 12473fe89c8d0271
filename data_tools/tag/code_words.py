"""`code_words`: OLMoE's filter of StarCoder.

Source: OLMoE (2024), section 2: drop code of repositories with fewer than 2 stars, and documents whose most frequent word is over
30 % of the words, or the two most frequent over 50 %.
"""

from typing import Any

import msgspec

from data_tools.documents import Line
from data_tools.tag import gram_kernels as gram
from data_tools.tag import scan_kernels as kernel
from data_tools.tag.scanner import Needs, Scanned
from data_tools.tag.tagger import Scores

NEEDS = Needs(grams=1)
TYPES = ("fraction_of_most_common_word", "fraction_of_two_most_common_words", "stars")


class _Metadata(msgspec.Struct):
    metadata: Any = None


_decode = msgspec.json.Decoder(_Metadata).decode


def code_words_scores(found: Scanned, line: Line, stars_field: str) -> Scores:
    """Every type, over the whole document; stars only if the metadata have a number there."""
    start, end = found.whole
    words, row = max(found.state[kernel.WORDS], 1), found.grams[0]
    scores = {TYPES[0]: row[gram.TOP] / words, TYPES[1]: (row[gram.TOP] + row[gram.SECOND]) / words}
    stars = read_stars(line, stars_field)
    if stars is not None:
        scores[TYPES[2]] = stars
    return {name: [[start, end, score]] for name, score in scores.items()}


def read_stars(line: Line, name: str) -> float | None:
    """The number in this field of the metadata."""
    try:
        metadata = _decode(line.raw).metadata
    except msgspec.ValidationError:
        metadata = line.values().get("metadata")
    value = metadata.get(name) if isinstance(metadata, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
