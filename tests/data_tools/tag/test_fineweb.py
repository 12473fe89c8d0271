"""FineWeb's numbers are those of a naive count."""

import pytest

from data_tools.tag.fineweb import NEEDS, TYPES, fineweb_scores
from data_tools.tag.scanner import Scanner
from tests.data_tools.tag import naive


def test_every_number_is_that_of_a_naive_count() -> None:
    whole, pieces = Scanner(NEEDS), Scanner(NEEDS, chunk=53)
    for text in naive.texts(300, 7):
        scores = fineweb_scores(whole.scan(naive.line_of(text)))
        assert scores == fineweb_scores(pieces.scan(naive.line_of(text, is_long=True)))
        assert list(scores) == list(TYPES)
        assert all(spans[0][:2] == [0, len(text)] for spans in scores.values())
        assert {name: spans[0][2] for name, spans in scores.items()} == pytest.approx(naive.fineweb(text), rel=1e-12, abs=0), text
