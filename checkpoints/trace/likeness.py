"""How like a span some other tokens are: their unigram log-probability, and the words that begin in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_tools.trace.searcher import Searcher
from olmo_train.errors import ConfigError


@dataclass(frozen=True)
class Tolerance:
    """How unlike a control may be."""

    caliper: float = 0.5
    """Largest difference of unigram log-probability, nats per token."""
    words: float = 0.1
    """Largest difference in the number of words that begin, as a share of the tokens; one word at least."""


class Likeness:
    """To one span. Words matter because the rest of a word is easy to predict from its beginning: of two spans with as many
    tokens the one with fewer words is learned sooner."""

    def __init__(self, searcher: Searcher, before: int, ids: Sequence[int], tolerance: Tolerance) -> None:
        """`before`: the id that stands before the span."""
        self._log_probs_V, self._tolerance = unigram_log_probs(searcher), tolerance
        self._ends_V, self._begins_V = _word_ids(searcher)
        self._n_tokens = len(ids)
        self._log_prob = self._sum(np.asarray(ids, np.int64))
        self._begins_T = self._words(np.array([before, *ids], np.int64))

    def difference(self, before_and_ids: np.ndarray) -> float | None:
        """Of unigram log-probability, nats per token, without a sign; None where something differs more than it may.

        `before_and_ids`: int64 (1 + T,), as many tokens as the span has, after the one that stands before them.
        """
        difference = abs(self._sum(before_and_ids[1:]) - self._log_prob) / self._n_tokens
        begins_T = self._words(before_and_ids)
        words = abs(int(begins_T.sum()) - int(self._begins_T.sum()))
        is_like = (
            difference <= self._tolerance.caliper
            and words <= max(1, int(self._tolerance.words * self._n_tokens))
            and begins_T[0] == self._begins_T[0]
        )
        return difference if is_like else None

    def _sum(self, ids: np.ndarray) -> float:
        return float(self._log_probs_V[ids].sum())

    def _words(self, ids: np.ndarray) -> np.ndarray:
        """bool (T,): whether a word begins, or something that is no word stands, at each id but the first."""
        return ~(self._ends_V[ids[:-1]] & self._begins_V[ids[1:]])


def unigram_log_probs(searcher: Searcher) -> np.ndarray:
    """float64 (vocab_size,): log-probabilities of ids in training documents, nats; an id that is not there counts as one time."""
    return np.log(np.maximum(searcher.unigrams, 1)) - math.log(max(searcher.n_tokens, 1))


def _word_ids(searcher: Searcher) -> tuple[np.ndarray, np.ndarray]:
    """bool (vocab_size,) each: ids that end, and that begin, in the middle of a word: with a letter, a digit or an underscore.

    All False, so that every token is a word, where ids have no bytes of their own.
    """
    ends, begins = np.zeros(searcher.vocab_size, np.bool_), np.zeros(searcher.vocab_size, np.bool_)
    try:
        table = searcher.tokenizer.id_bytes()
    except ConfigError:  # no manifest names a tokenizer
        table = None
    for number, data in enumerate((table or [])[: searcher.vocab_size]):
        if data:
            ends[number], begins[number] = _is_word(data[-1]), _is_word(data[0])
    return ends, begins


def _is_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum() or byte == ord("_")
