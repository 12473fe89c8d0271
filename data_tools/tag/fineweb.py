"""`fineweb`: the rules that FineWeb added to those of Gopher and C4.

Source: G. Penedo et al., The FineWeb Datasets (2024), section 3.6; formulas are those of datatrove's FineWebQualityFilter, with
the words of str.split() instead of a language's tokenizer (docs/tag.md).
"""

from data_tools.tag import gram_kernels as gram
from data_tools.tag import scan_kernels as kernel
from data_tools.tag.scanner import Needs, Scanned
from data_tools.tag.tagger import Scores

NEEDS = Needs(lines=True)
TYPES = (
    "fraction_of_lines_ending_with_punctuation",
    "fraction_of_short_lines",
    "fraction_of_characters_in_duplicate_lines",
    "newlines_per_word",
)


def fineweb_scores(found: Scanned) -> Scores:
    """Every type, over the whole document. Lines without a word do not count."""
    state, (start, end) = found.state, found.whole
    lines = max(state[kernel.SOLID_LINES], 1)
    scores = (
        state[kernel.PUNCTUATED] / lines,
        state[kernel.SHORT_LINES] / lines,
        found.lines[gram.SOLID_REPEAT_CHARS] / max(end - state[kernel.NEWLINES], 1),
        state[kernel.NEWLINES] / max(state[kernel.WORDS], 1),
    )
    return {name: [[start, end, score]] for name, score in zip(TYPES, scores, strict=True)}
