"""What becomes of one document: the rule that drops it, or the spans that are replaced in it, and its size then."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from data_tools.documents import Line
from data_tools.mix.attributes import Row, slots_of
from data_tools.mix.expression import Rules, View, size_of
from data_tools.mix.plan import SourcePlan
from data_tools.mix.redact import Cut, SpanError, check_cuts, check_metadata, find_cuts, redacted
from data_tools.tokenize.encoder import Encoder


class JudgeError(ValueError):
    """A rule that cannot be worked out for a document, or a span that is not in its text."""


@dataclass(slots=True)
class Verdict:
    """On one document."""

    rule: int
    """Which dropped it; -1: none."""
    read: tuple[int, int]
    """Bytes of its text and tokens (0: not known) as it was read."""
    left: tuple[int, int] = (0, 0)
    """The same after redaction."""
    cuts: list[Cut] = field(default_factory=list)
    text: str | None = None
    """After redaction; None: of a long document, or nothing was replaced."""
    is_short: bool = False
    """Whether min_text_length drops it; `length` says how long it is."""
    length: int = 0


class Judge:
    """Judges the documents of one source. Made once per part."""

    def __init__(self, plan: SourcePlan, count_tokens: bool) -> None:
        """`count_tokens`: by the tokenizer, if no attribute has them."""
        self.plan = plan
        self._slots = slots_of(plan)
        self.rules = Rules([(rule.text, rule.keep) for rule in plan.rules], self._slots)
        self._encoder = _encoder(plan.tokenizer) if plan.tokenizer and count_tokens else None
        self._tokens = self._slots[plan.tokens] if plan.tokens else None

    def judge(self, line: Line, row: Row) -> Verdict:
        """Raises:
        JudgeError: says what is wrong; the document goes to quarantine."""
        view = View(line)
        size = view.n_bytes
        tokens = self._tokens_of(row) if self._tokens is not None else 0
        try:
            rule = self.rules.first(row, view)
        except (TypeError, ArithmeticError):
            index, told = self.rules.failing(row, view)
            failed = self.plan.rules[index]
            raise JudgeError(f"rule {failed.name} `{failed.text}` cannot be worked out for it: {told}") from None
        if rule >= 0:
            return Verdict(rule, (size, tokens))
        left, length = size, None
        cuts: list[Cut] = []
        text = None
        if self.plan.redactions:
            cuts = self._cuts(row, view)
            if cuts:
                text, length, left = _after(line, cuts)
        if self.plan.min_text_length:
            length = view.length() if length is None else length
            if length < self.plan.min_text_length:
                return Verdict(-1, (size, tokens), (left, tokens), cuts, text, is_short=True, length=length)
        counted = self._count(line, cuts, text) if self._encoder is not None else tokens
        return Verdict(-1, (size, tokens), (left, counted), cuts, text)

    def values(self, verdict: Verdict, row: Row, line: Line) -> dict[str, Any]:
        """What the rule that dropped a document looked at."""
        return self.rules.values(verdict.rule, row, View(line))

    def _cuts(self, row: Row, view: View) -> list[Cut]:
        try:
            cuts = find_cuts(self.plan.redactions, self._slots, row)
            if cuts:
                check_cuts(cuts, view.length())
                check_metadata(view.line)
        except SpanError as error:
            raise JudgeError(str(error)) from None
        return cuts

    def _tokens_of(self, row: Row) -> int:
        assert self._tokens is not None
        spans = row[self._tokens]
        number = spans[0][2] if spans else 0
        if number < 0:
            raise JudgeError(f"{self.plan.tokens}={number} is no number of tokens; write the attributes again")
        return int(number)

    def _count(self, line: Line, cuts: list[Cut], text: str | None) -> int:
        """Tokens with the end of text; of long documents piece by piece, which may differ by one or two for each MB."""
        assert self._encoder is not None
        if line.is_long:
            return 1 + sum(len(self._encoder.encode([piece])[0]) for piece in redacted(line.pieces(), cuts))
        return 1 + len(self._encoder.encode([line.text if text is None else text])[0])


@cache
def _encoder(path: str) -> Encoder:
    """One per process."""
    return Encoder(Path(path))


def _after(line: Line, cuts: list[Cut]) -> tuple[str | None, int, int]:
    """(text, if it is not long; characters; bytes) after redaction."""
    if not line.is_long:
        text = "".join(redacted(line.pieces(), cuts))
        return text, len(text), size_of(text)
    length = size = 0
    for piece in redacted(line.pieces(), cuts):
        length += len(piece)
        size += size_of(piece)
    return None, length, size
