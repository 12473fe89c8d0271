"""The context of a span is what its row of training had before it, or its document, or the text."""

from dataclasses import replace

import pytest

from checkpoints.trace.queries import Context, document_id, parse_place, query_place, query_text
from data_tools.inspect.run_order import open_run
from data_tools.trace.answer import Place
from data_tools.trace.searcher import Searcher
from olmo_train.config.data import DataConfig
from olmo_train.data.loader import read_rows
from olmo_train.data.order import DataOrder
from olmo_train.errors import ConfigError
from tests.checkpoints.trace.planted import Planted

N = 6


@pytest.fixture(scope="module")
def searcher(planted: Planted) -> Searcher:
    return Searcher([planted.shards / "trace"])


@pytest.fixture(scope="module")
def order(planted: Planted) -> tuple[DataConfig, DataOrder]:
    run, order = open_run(str(planted.run))
    return run.data, order


def places(searcher: Searcher, is_trained: bool) -> list[Place]:
    """Some spans of N tokens in documents of one split, those at the end of the file among them."""
    file = searcher.corpora[0].files[0]
    spans = [file.index.span(n) for n in range(len(file.index.starts) - 1)]
    every = [Place(0, 0, at) for start, end in spans for at in range(start, end - N)]
    found = [*every[:4000:3], *every[-200:]]
    return [place for place in found if (file.index.train_position(place.offset) is not None) == is_trained]


def test_a_row_context_is_what_stands_in_the_batch(searcher: Searcher, order: tuple[DataConfig, DataOrder]) -> None:
    """For every span that a row of the first steps holds: the columns before it."""
    data, batches = order
    seen = 0
    for step in (1, 2):
        for instance in batches.batch(step):
            row = read_rows([instance.pieces], data.seq_len, False, None).ids[0].tolist()
            for document in batches.documents(instance):
                for column in range(max(1, document.column_start), document.column_end - N + 1):
                    offset = (
                        document.file.index.span(document.ordinal)[0] + document.offset_start + column - document.column_start
                    )
                    query = query_place(searcher, Place(0, 0, offset), N, None, data)
                    assert (query.context, list(query.context_ids)) == (Context.ROW, row[:column])
                    assert list(query.ids) == row[column : column + N]
                    seen += 1
    assert seen > 300


def test_with_document_masking_it_is_the_documents_part(searcher: Searcher, order: tuple[DataConfig, DataOrder]) -> None:
    data, batches = order
    masked = replace(data, document_masking=True)
    for instance in batches.batch(1):
        row = read_rows([instance.pieces], data.seq_len, False, None).ids[0].tolist()
        for document in batches.documents(instance):
            start = document.file.index.span(document.ordinal)[0] + document.offset_start
            for column in range(document.column_start, document.column_end - N + 1):
                query = query_place(searcher, Place(0, 0, start + column - document.column_start), N, None, masked)
                if column > document.column_start:
                    assert (query.context, list(query.context_ids)) == (Context.ROW, row[document.column_start : column])
                else:
                    assert query.context == Context.DOCUMENT


def test_a_span_without_a_row_has_its_documents_context(searcher: Searcher, order: tuple[DataConfig, DataOrder]) -> None:
    data, _ = order
    file = searcher.corpora[0].files[0]
    n_rows = (file.entry.tokens - file.entry.heldout_tokens) // data.seq_len
    kinds = set()
    for place in [*places(searcher, True), *places(searcher, False)[:200]]:
        position = file.index.train_position(place.offset)
        if position is None:
            kind = "is held out: no row of training has it"
        elif position // data.seq_len >= n_rows:
            kind = "stands in the tail of its file that no row of training has"
        elif position % data.seq_len + N > data.seq_len:
            kind = "goes on in another row of training"
        elif position % data.seq_len == 0:
            kind = "begins a row of training, or its document where attention does not cross documents"
        else:
            continue
        if kind in kinds:
            continue
        kinds.add(kind)
        query = query_place(searcher, place, N, None, data)
        start, _ = file.index.span(file.index.documents_between(place.offset, place.offset + 1)[0])
        expected = [0, *file.read(start, place.offset).tolist()][-(data.seq_len - N) :]
        assert (query.context, list(query.context_ids)) == (Context.DOCUMENT, expected)
        with pytest.raises(ConfigError) as error:
            query_place(searcher, place, N, Context.ROW, data)
        assert str(error.value) == f"--context=row: the span at 0:0:{place.offset} {kind}; give --context document"
    assert len(kinds) >= 3


def test_a_document_context_is_asked_for(searcher: Searcher, order: tuple[DataConfig, DataOrder]) -> None:
    data, _ = order
    file = searcher.corpora[0].files[0]
    start, _ = file.index.span(3)
    query = query_place(searcher, Place(0, 0, start + 4), N, Context.DOCUMENT, data)
    assert list(query.context_ids) == [0, *file.read(start, start + 4).tolist()]
    far = query_place(searcher, Place(0, 0, start + 4), 4, Context.DOCUMENT, replace(data, seq_len=6))
    assert list(far.context_ids) == file.read(start + 1, start + 4).tolist()  # half a row at least


def test_a_text_begins_after_an_end_of_text() -> None:
    assert list(query_text([5, 6, 7, 8], 2, 4, 0, 32).context_ids) == [0, 5, 6]
    assert list(query_text([5, 6, 7, 8], 0, 2, 0, 32).context_ids) == [0]
    long = query_text(list(range(1, 101)), 90, 95, 0, 32)
    assert list(long.context_ids) == list(range(64, 91))
    assert (list(long.ids), long.place, long.context) == ([91, 92, 93, 94, 95], None, Context.TEXT)


def test_places_are_parsed(searcher: Searcher, planted: Planted) -> None:
    file = searcher.corpora[0].files[0]
    n_tokens, (start, end) = file.entry.tokens, file.index.span(1)
    assert parse_place(f"0:0:{start}", searcher, 3) == Place(0, 0, start)
    rule = "must be CORPUS:FILE:OFFSET, as `olmo trace text --json` names places"
    for words, problem in {
        "0:0": f"--place=0:0 {rule}",
        "0:-1:4": f"--place=0:-1:4 {rule}",
        "1:0:4": f"--place=1:0:4: there is no index 1; 1 are open; it {rule}",
        "0:7:4": f"--place=0:7:4: the shards of index 0 have 1 files; it {rule}",
        f"0:0:{n_tokens - 2}": f"--place=0:0:{n_tokens - 2}: the file has {n_tokens} tokens, 3 from there do not fit; it {rule}",
        f"0:0:{end - 1}": f"--place=0:0:{end - 1}: 3 tokens from there go on in another document; it {rule}",
    }.items():
        with pytest.raises(ConfigError) as error:
            parse_place(words, searcher, 3)
        assert str(error.value) == problem
    blocking = Searcher([planted.shards / "trace"], blocked=[document_id(searcher, Place(0, 0, start))])
    with pytest.raises(ConfigError) as error:
        parse_place(f"0:0:{start}", blocking, 3)
    assert str(error.value) == f"--place=0:0:{start} is in a document that is blocked (privacy.blocked); choose another"
