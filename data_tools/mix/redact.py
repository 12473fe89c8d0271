"""Spans of a text replaced, in one pass over its pieces; and a document's line of JSON with some of its fields changed.

Spans that share a character are replaced as one, by the replacement of the one that begins first (of two that begin together: the
longer, then the one of the earlier rule). Spans that only touch stay two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from data_tools.documents import Line
from data_tools.mix.attributes import Row
from data_tools.mix.plan import Redaction

METADATA = "redacted"
"""Name in a document's metadata: {rule: spans replaced}."""


class SpanError(ValueError):
    """A span that does not lie in its text."""


@dataclass(frozen=True)
class Cut:
    """Characters [start, end) that are replaced."""

    start: int
    end: int
    replacement: str
    rule: str
    spans: int
    """How many became this one."""


def find_cuts(redactions: Sequence[Redaction], slots: Mapping[str, int], row: Row) -> list[Cut]:
    """What is replaced in a document, by position; empty spans replace nothing.

    Raises:
        SpanError: a negative span, or one that ends before it begins.
    """
    found: list[tuple[int, int, int]] = []
    for i, rule in enumerate(redactions):
        for start, end, score in row[slots[rule.spans]]:
            if rule.min_score <= score <= rule.max_score:
                if start < 0 or end < start:
                    raise SpanError(f"{rule.spans} has the span [{start}, {end}], which is none; write the attributes again")
                if start < end:
                    found.append((start, -end, i))
    return _merge(sorted(found), redactions) if found else []


def _merge(found: list[tuple[int, int, int]], redactions: Sequence[Redaction]) -> list[Cut]:
    cuts = []
    first, less, owner = found[0]
    last, spans = -less, 1
    for start, less, i in [*found[1:], (-1, 0, 0)]:
        if first <= start < last:
            last, spans = max(last, -less), spans + 1
            continue
        cuts.append(Cut(first, last, redactions[owner].replacement, redactions[owner].name, spans))
        first, last, owner, spans = start, -less, i, 1
    return cuts


def check_cuts(cuts: list[Cut], length: int) -> None:
    """Raises:
    SpanError: the last one ends after its text, of `length` characters."""
    if cuts and cuts[-1].end > length:
        told = f"[{cuts[-1].start}, {cuts[-1].end}] of rule {cuts[-1].rule} ends after the text, which has {length:,} characters"
        raise SpanError(f"the span {told}; offsets are Unicode characters: write the attributes again")


def redacted(pieces: Iterator[str], cuts: list[Cut]) -> Iterator[str]:
    """The text with replacements, in pieces."""
    at, i = 0, 0  # characters before this piece; the next cut
    for piece in pieces:
        end, here = at + len(piece), at
        while i < len(cuts) and cuts[i].start < end:
            cut = cuts[i]
            if cut.start >= at:
                yield piece[here - at : cut.start - at]
                yield cut.replacement
            here = min(cut.end, end)
            if cut.end > end:
                break
            i += 1
        if here < end:
            yield piece[here - at :] if here > at else piece
        at = end


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def changed_line(
    line: Line, fields: Mapping[str, Any], metadata: Mapping[str, Any], pieces: Iterator[str] | None
) -> Iterator[bytes]:
    """A document's JSON, in pieces, with new `fields`, more `metadata`, and a new text if `pieces` are given.

    All else stays, byte for byte.
    """
    values: dict[str, Any] = _decode(line.raw)
    values.update({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in fields.items()})
    if metadata:
        values["metadata"] = _more_metadata(values.get("metadata"), metadata)
    first = True
    for name, value in values.items():
        yield (b"{" if first else b",") + msgspec.json.encode(name) + b":"
        first = False
        if name == "text" and pieces is not None:
            yield b'"'
            for piece in pieces:
                yield msgspec.json.encode(piece)[1:-1]
            yield b'"'
        else:
            yield bytes(value) if len(memoryview(value)) < 2**20 else memoryview(value)  # type: ignore[misc]
    yield b"}"


def check_metadata(line: Line) -> None:
    """Raises:
    SpanError: the metadata are no object, and so cannot say what was changed."""
    raw = _decode_metadata(line.raw).metadata
    if raw is not msgspec.UNSET and bytes(memoryview(raw)[:1]) not in (b"{", b"n"):
        raise SpanError("metadata is not an object, and so cannot say what was changed in the document; mend it")


class _Metadata(msgspec.Struct, gc=False):
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_metadata = msgspec.json.Decoder(_Metadata).decode


def _added(before: Any, counts: Mapping[str, int]) -> Any:
    if not isinstance(before, dict):
        return counts
    sums = {name: before[name] + n for name, n in counts.items() if isinstance(before.get(name), int)}
    return {**before, **counts, **sums}


def _more_metadata(raw: Any, more: Mapping[str, Any]) -> msgspec.Raw:
    values: dict[str, Any] = _decode(raw) if raw is not None and bytes(raw) != b"null" else {}
    if METADATA in more and METADATA in values:  # by an earlier mixture
        more = {**more, METADATA: _added(msgspec.json.decode(values[METADATA]), more[METADATA])}
    values.update({name: msgspec.Raw(msgspec.json.encode(value)) for name, value in more.items()})
    return msgspec.Raw(msgspec.json.encode(values))
