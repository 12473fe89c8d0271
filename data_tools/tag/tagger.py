"""What a tagger is: text in, spans with scores out. Names and meanings are Dolma's where Dolma has them."""

from collections.abc import Sequence
from typing import Protocol

from data_tools.documents import Line

Scores = dict[str, list[list[float]]]
"""Type to spans [start, end, score], characters of the text, end-exclusive. A type without a span may be left out."""


class Tagger(Protocol):
    """Made once per process, then asked for batch after batch. Equal documents get equal scores, in whatever batch."""

    name: str
    """Second part of an attribute's name: <experiment>__<name>__<type>."""
    types: Sequence[str]
    """Every type it may give: what a filter may name."""

    def tag(self, lines: Sequence[Line]) -> list[Scores]:
        """Scores of each document, in order. Long ones (`Line.is_long`) are read by `pieces`, in bounded memory."""
        ...
