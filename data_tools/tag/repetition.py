"""`repetition`: short n-grams of tokens that stand many times in a row, and the number of tokens.

Source: OLMoE (2024), section 2: drop documents with 32 or more repeats of an n-gram of 1 to 13 tokens of the model's tokenizer;
names are those of Dolma 1.2's tokenizer_repetitions (python/dolma/taggers/repetitions), the count is that of the training's mask
(olmo_train/data/repetition.py).
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data_tools.documents import Line
from data_tools.tag.config import RepetitionConfig
from data_tools.tag.repetition_kernels import close_runs, find_runs
from data_tools.tag.tagger import Scores
from data_tools.tokenize.encoder import Encoder

TYPES = ("repetition", "doc_max_score_repetition", "doc_max_length_repetition", "doc_frac_repetition")
LEAST = 3
"""Repeats from which Dolma looks at a stretch."""


@dataclass
class Tokenized:
    """What was found among the tokens of a document."""

    n_tokens: int
    most_repeats: int
    spans: list[list[float]]
    """(start, end, repeats) in characters; none lies within another."""


def repetition_scores(found: Tokenized, n_chars: int) -> Scores:
    """Every type; `repetition` only if there is one."""
    lengths = [end - start for start, end, _ in found.spans]
    scores: Scores = {
        TYPES[1]: [[0, n_chars, found.most_repeats if found.most_repeats >= LEAST else 0]],
        TYPES[2]: [[0, n_chars, max(lengths, default=0)]],
        TYPES[3]: [[0, n_chars, sum(lengths) / max(n_chars, 1)]],
    }
    return {TYPES[0]: found.spans, **scores} if found.spans else scores


class Repetitions:
    """Made once per process."""

    def __init__(self, encoder: Encoder, config: RepetitionConfig) -> None:
        self._encoder, self._least, self._longest = encoder, config.span_repeats, config.max_period
        self._token_bytes = encoder.tokenizer.token_bytes()

    def find(self, lines: list[Line]) -> list[Tokenized]:
        """Of each document, in order."""
        short = [line for line in lines if not line.is_long]
        each: Iterator[np.ndarray] = iter(())
        if short:
            ids, ends = self._encoder.encode([line.text for line in short])
            each = iter(np.split(ids, ends[1:-1]))
        return [self._find_long(line) if line.is_long else self._find([(line.text, next(each))]) for line in lines]

    def _find_long(self, line: Line) -> Tokenized:
        return self._find((text, self._encoder.encode([text])[0]) for text in cut_for_tokens(line))

    def _find(self, stretches: "Iterator[tuple[str, np.ndarray]] | list[tuple[str, np.ndarray]]") -> Tokenized:
        runs, best = np.zeros(self._longest + 1, np.int64), np.zeros(1, np.int64)
        history = np.full(self._longest, -1, np.int64)
        position = n_chars = 0
        found: list[tuple[int, int, int]] = []
        starts = np.zeros(0, np.int64)
        """Characters at which the last tokens before this stretch begin."""
        begun: dict[int, tuple[int, int]] = {}
        """Of stretches that began before: token, character."""
        several = not isinstance(stretches, list)
        for text, ids in stretches:
            out = np.empty((2 * len(ids) + self._longest + 1, 4), np.int64)
            rows = find_runs(ids, position, history, runs, self._least, best, out)
            if rows or several:
                places = np.concatenate([starts, n_chars + self._places(text, ids)])
                first = position - len(starts)
                found += _in_characters(out[:rows], places, first, begun)
                begun = _still_open(runs, position + len(ids), places, first, begun)
                starts = places[:-1][-self._longest :]
            position += len(ids)
            n_chars += len(text)
            last = (text, ids)
        out = np.empty((self._longest, 4), np.int64)
        rows = close_runs(position, runs, self._least, best, out)
        if rows:
            if not several:
                starts, begun = self._places(*last)[:-1], {}
            places = np.concatenate([starts, [n_chars]])
            found += _in_characters(out[:rows], places, position - len(starts), begun)
        return Tokenized(position, int(best[0]), _outermost(found))

    def _places(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Character at which each token begins, and the end of the text: int64, one more than tokens."""
        data = text.encode("utf-8")
        if self._token_bytes is not None and (len(data) == len(text) or unicodedata.is_normalized("NFC", text)):
            ends = np.cumsum(self._token_bytes[ids], dtype=np.int64)
            if len(ids) and ends[-1] == len(data):
                starts = np.concatenate([[0], ends])
                if len(data) == len(text):
                    return starts
                leads = np.cumsum((np.frombuffer(data, np.uint8) & 0xC0) != 0x80)  # characters begun up to each byte
                return np.append(leads[starts[:-1]] - 1, len(text))
        offsets = self._encoder.tokenizer.encode_offsets(text)[1]
        return np.array([*(start for start, _ in offsets), len(text)], np.int64)


def _in_characters(
    rows: np.ndarray, places: np.ndarray, first: int, begun: dict[int, tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """(start, end, repeats) of stretches of tokens; places[0] is that of token number `first`."""
    found = []
    for start, end, period, repeats in rows.tolist():
        known = begun.get(period)
        place = known[1] if known is not None and known[0] == start else int(places[start - first])
        found.append((place, int(places[end - first]), repeats))
    return found


def _still_open(
    runs: np.ndarray, position: int, places: np.ndarray, first: int, begun: dict[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """Where the stretches begin that go on after this."""
    now = {}
    for period in range(1, len(runs)):
        if runs[period]:
            start = position - int(runs[period]) - period
            known = begun.get(period)
            now[period] = known if known is not None and known[0] == start else (start, int(places[start - first]))
    return now


def _outermost(found: list[tuple[int, int, int]]) -> list[list[float]]:
    """Those that lie in none before, as Dolma's tokenizer_repetitions_v2r2."""
    kept: list[list[float]] = []
    for start, end, repeats in sorted(found, key=lambda span: (span[0], -span[1], -span[2])):
        if not kept or end > kept[-1][1]:
            kept.append([start, end, repeats])
    return kept


def cut_for_tokens(line: Line) -> Iterator[str]:
    """A long text in stretches whose tokens are those of the whole, for byte-level BPE as in GPT-2, GPT-NeoX and Dolma 2: cut
    before a space between two ASCII letters. Where a megabyte has none, it is cut where it ends."""
    held = ""
    for piece in line.pieces():
        held += piece
        at = len(held)
        while (at := held.rfind(" ", 1, at)) > 0 and not _is_between_letters(held, at):
            pass
        if at > 0:
            yield held[:at]
            held = held[at:]
        elif len(held) > 2**20:
            yield held
            held = ""
    if held:
        yield held


def _is_between_letters(text: str, at: int) -> bool:
    around = text[at - 1] + text[at + 1 : at + 2]
    return len(around) == 2 and around.isascii() and around.isalpha()
