"""What a reader makes of a record: a document that is not written yet, its text whole or in pieces."""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import xxhash

from data_tools.ingest.config import Newlines, Unicode

Pieces = Callable[[], Iterator[str]]
"""A long text in consecutive pieces, from its beginning at every call."""


@dataclass
class Candidate:
    """A document on its way. `path`, `line`: its place, for those that are dropped."""

    id: str
    source: str
    text: str | Pieces
    metadata: dict[str, Any] = field(default_factory=dict)
    created: str | None = None
    added: str | None = None
    size: int = 0
    """Bytes it was made of."""
    path: str = ""
    line: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    """More of its place: byte or row."""


def made_id(source: str, *place: object) -> str:
    """xxh3-128 of the source and a place in it: the same wherever the files lie and however they are cut."""
    return xxhash.xxh3_128_hexdigest("\0".join([source, *map(str, place)]).encode("utf-8", "surrogatepass"))


def text_pieces(text: str | Pieces, newlines: Newlines, unicode: Unicode) -> Iterator[str]:
    """The text, normalised as the config says."""
    pieces = iter([text]) if isinstance(text, str) else text()
    if newlines == Newlines.LF:
        pieces = _held_back(pieces, _before_cr, lambda text: text.replace("\r\n", "\n").replace("\r", "\n"))
    if unicode == Unicode.NFC:
        pieces = _held_back(pieces, _before_space, lambda text: unicodedata.normalize("NFC", text))
    return pieces


def _held_back(pieces: Iterator[str], cut: Callable[[str], int], change: Callable[[str], str]) -> Iterator[str]:
    """Change a text piece by piece; what follows `cut` of a piece is changed together with the next."""
    rest = ""
    for piece in pieces:
        piece = rest + piece
        at = cut(piece)
        rest = piece[at:]
        yield change(piece[:at])
    yield change(rest)


def _before_cr(text: str) -> int:
    return len(text) - text.endswith("\r")


def _before_space(text: str) -> int:
    """The last place that no normalisation reaches across: spaces and newlines combine with nothing before them."""
    return max(text.rfind(" "), text.rfind("\n"), 0)
