"""`pii`: e-mail addresses, telephone numbers and IP addresses, by the rules of Dolma's regular expressions, in linear time."""

import re
from collections.abc import Iterator, Sequence

from data_tools.documents import Line
from data_tools.tag.model_config import PiiConfig
from data_tools.tag.tagger import Scores
from data_tools.tag.units import DECIMALS, Spans, Window, n_chars, search, windows

MOST = 256
"""Characters before and after the `@` of an address: Dolma has no bound, and takes quadratic time for it."""
GAP = 32
"""Characters between the first two groups of a telephone number; white space that wide spans take in."""
# Source: allenai/dolma python/dolma/taggers/pii.py (FastPiiRegex, BasePiiFilter), taken apart at the `@`.
_DOMAIN = re.compile(rf"[^\s@,?!;:)(]{{1,{MOST}}}?(?=[.\s@,?!;:)(]?(?:\s|\Z))")
_LOCAL_BACKWARDS = re.compile(rf"[^\s@]{{1,{MOST}}}")
_EDGE = ".,?!;:)("
# A set of characters at the front is looked for fast, what stands before them only then: 3 times as fast as `(?<=\s)` in front.
_PHONE = re.compile(rf"[(0-9](?<=\s.)(?:(?<=\()[0-9]{{3}}|(?<=[0-9])[0-9]{{2}})\)?[-. ]{{0,{GAP}}}[0-9]{{3}}[-. ]?[0-9]{{4}}")
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_IP = re.compile(rf"(?:{_BYTE}\.){{3}}{_BYTE}")
_IP_LIKE = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_NO_NUMBER = ("isbn", "doi", "#")
EMAIL, PHONE, IP = "EMAIL_ADDRESS", "PHONE_NUMBER", "IP_ADDRESS"


class PiiTagger:
    """See PiiConfig."""

    name = "pii"
    types: Sequence[str] = (EMAIL, PHONE, IP, "doc_count", "doc_frac")

    def __init__(self, config: PiiConfig) -> None:
        self._config = config
        self._reach = 2 * MOST + config.window

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Spans of each kind; and of the document, how many there are and which fraction of its characters they take."""
        return [self._tag(line) for line in lines]

    def _tag(self, line: Line) -> Scores:
        found = {EMAIL: Spans(), PHONE: Spans(), IP: Spans()}
        for start, end in self._emails(line):
            found[EMAIL].add(start, end)
        for kind, pattern in ((PHONE, _PHONE), (IP, _IP)):
            if kind == PHONE or line.is_long or _IP_LIKE.search(line.text):
                for match, window in search(line, pattern, self._reach):
                    if not self._is_none(match, window):
                        before = _spaces_before(window.text, match.start()) if kind == PHONE and self._config.wide_spans else 0
                        found[kind].add(window.offset + match.start() - before, window.offset + match.end())
        chars, count = n_chars(line), sum(spans.count for spans in found.values())
        frac = round(sum(spans.chars for spans in found.values()) / max(chars, 1), DECIMALS)
        scores: Scores = {kind: spans.spans for kind, spans in found.items() if spans.spans}
        return {**scores, "doc_count": [[0, chars, count]], "doc_frac": [[0, chars, frac]]}

    def _emails(self, line: Line) -> Iterator[tuple[int, int]]:
        for window in windows(line, self._reach):
            text, at = window.text, window.text.find("@", window.pos)
            while 0 <= at < window.limit:
                if span := _email(text, at):
                    start, end = _widened(text, *span) if self._config.wide_spans else span
                    yield window.offset + start, window.offset + end
                at = text.find("@", at + 1)

    def _is_none(self, match: re.Match[str], window: Window) -> bool:
        size = self._config.window
        if not size:
            return False
        around = window.text[max(0, match.start() - size) : match.end() + size]
        return any(word in around for word in _NO_NUMBER)


def _email(text: str, at: int) -> tuple[int, int] | None:
    """The address around the `@` at `at`, as Dolma's expression and its rules for local part and domain find it."""
    if at == 0 or text[at - 1].isspace():
        return None
    domain = _DOMAIN.match(text, at + 1)
    if domain is None or "." not in domain.group():
        return None
    local = _LOCAL_BACKWARDS.match(text[max(0, at - MOST) : at][::-1])
    if local is None or not (name := local.group()[::-1].lstrip(_EDGE)):
        return None
    return at - len(name), domain.end()


def _widened(text: str, start: int, end: int) -> tuple[int, int]:
    """What Dolma's expression takes in around an address: punctuation and white space before, up to two characters after."""
    first = start
    while first > 0 and start - first < GAP and (text[first - 1] in _EDGE or text[first - 1] in "@ \t"):
        first -= 1
    if end + 1 < len(text) and (text[end] in _EDGE or text[end].isspace() or text[end] == "@") and text[end + 1].isspace():
        return first, end + 2
    return first, min(end + 1, len(text))


def _spaces_before(text: str, start: int) -> int:
    before = text[max(0, start - GAP) : start]
    return len(before) - len(before.rstrip())
