"""How much of a text stands verbatim in training documents, whatever stands before and after it there."""

from dataclasses import dataclass

import numpy as np

from data_tools.trace.searcher import Searcher

MAX_CHECKED = 1000
"""Occurrences of the inside of a text whose surroundings are read."""
MAX_EDGE = 64
"""Bytes at each end of a text that may be tokenized otherwise there."""


@dataclass(frozen=True)
class Matched:
    """A text against training documents."""

    ids: list[int]
    """Its tokens as they match most: a text that begins a document, follows a space or follows a newline begins differently."""
    is_verbatim: bool
    longest_start: int
    longest_end: int
    """The longest span that stands there, in tokens of `ids`; of equally long ones the first."""
    n_contaminated: int
    """Tokens in spans of at least n tokens that stand there; all of them if the text is verbatim."""


def match_texts(searcher: Searcher, texts: list[str], n: int) -> list[Matched]:
    """Match every text; spans of at least `n` tokens count as contaminated."""
    forms = [[text] if text[:1].isspace() or not text else [text, f" {text}", f"\n{text}"] for text in texts]
    encoded = iter(searcher.tokenizer.encode_batch([form for group in forms for form in group]))
    table = searcher.tokenizer.id_bytes()
    found = []
    for group in forms:
        ids = [next(encoded) for _ in group]
        # What follows the newline; where the two are one token, that token stands in both.
        after = [ids[2][1:] if searcher.tokenizer.decode(ids[2][:1]) == "\n" else ids[2]] if len(ids) == 3 else []
        found.append(_match(searcher, [*ids[:2], *after], n, table))
    return found


def _match(searcher: Searcher, forms: list[list[int]], n: int, table: list[bytes] | None) -> Matched:
    unique = [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in forms)]
    found = [_match_ids(searcher, ids, n) for ids in unique]
    best = max(found, key=lambda m: (m.is_verbatim, m.n_contaminated, m.longest_end - m.longest_start))
    if not best.is_verbatim and table is not None and any(_stands_within(searcher, form, table) for form in found):
        return Matched(best.ids, True, best.longest_start, best.longest_end, len(best.ids))
    return best


def _match_ids(searcher: Searcher, ids: list[int], n: int) -> Matched:
    if not ids:
        return Matched(ids, False, 0, 0, 0)
    lengths = searcher.longest(ids)
    start = int(np.argmax(lengths))
    least = min(n, len(ids))
    changes = np.zeros(len(ids) + 1, np.int64)
    for b in np.flatnonzero(lengths >= least):
        changes[b] += 1
        changes[b + lengths[b]] -= 1
    covered = int((np.cumsum(changes[:-1]) > 0).sum())
    return Matched(ids, int(lengths[0]) == len(ids), start, start + int(lengths[start]), covered)


def _stands_within(searcher: Searcher, form: Matched, table: list[bytes]) -> bool:
    """Whether the text stands there with other tokens at its ends, joined to what is beside it: the inside by its tokens, the
    ends by their bytes.
    """
    # A longest span may be longer by a token than what the text has where it stands whole.
    for first in (form.longest_start, form.longest_start + 1):
        for last in (form.longest_end, form.longest_end - 1):
            head, tail = (b"".join(table[i] for i in ids) for ids in (form.ids[:first], form.ids[last:]))
            is_near = last > first and max(len(head), len(tail)) <= MAX_EDGE
            if is_near and _is_between(searcher, form.ids[first:last], head, tail, table):
                return True
    return False


def _is_between(searcher: Searcher, inside: list[int], head: bytes, tail: bytes, table: list[bytes]) -> bool:
    for place in searcher.places(searcher.find(inside), MAX_CHECKED):
        file = searcher.file(place)
        low, high = file.index.span(file.index.documents_between(place.offset, place.offset + 1)[0])
        end = place.offset + len(inside)
        before = b"".join(table[i] for i in file.read(max(low, place.offset - len(head)), place.offset))
        after = b"".join(table[i] for i in file.read(end, min(high, end + len(tail))))
        if before.endswith(head) and after.startswith(tail):
            return True
    return False
