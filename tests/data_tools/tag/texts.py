"""Documents for the tests of taggers, as the reader gives them."""

import json
from collections.abc import Iterator

from data_tools.documents import Line


class InPieces(Line):
    """A long document, in far smaller pieces than the reader's."""

    def pieces(self, size: int = 0) -> Iterator[str]:
        return super().pieces(size or 211)


def line(text: str, **fields: object) -> Line:
    """One document."""
    raw = json.dumps({"id": "x", "source": "s", "text": text, **fields}).encode()
    return Line("x", "s", text, raw, "documents.jsonl", 1)


def in_pieces(text: str, **fields: object) -> Line:
    """The same, as a document that is never whole in memory."""
    whole = line(text, **fields)
    return InPieces("x", "s", None, whole.raw, "documents.jsonl", 1, json.dumps(text, ensure_ascii=False).encode())
