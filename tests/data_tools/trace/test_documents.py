"""The documents of spans: which, with what around the span, and which of them are one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.build_index import build
from data_tools.trace.config import DocumentsConfig, IndexConfig
from data_tools.trace.documents import MOST_SNIPPETS, DocumentKey, DocumentReader, Held
from data_tools.trace.searcher import Searcher
from data_tools.trace.snippets import SnippetReader
from data_tools.trace.spans import Match
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions
from olmo_train.tokenizer import Tokenizer
from tests.data_tools.trace.traced import COPIED, EDGE, PLANTED, REPEATED, Traced, id_that, opened

EOS = 0
SPAN = [7, 8, 9]


def write_ids(folder: Path, documents: Sequence[Sequence[int]], max_tokens_per_file: int = 10**6) -> Searcher:
    """Shards of ids, documents named d0, d1, ..., and their index."""
    with ShardWriter(folder / "shards", WriterOptions("uint16", 1000, EOS, 0.0, max_tokens_per_file)) as writer:
        for n, ids in enumerate(documents):
            writer.add("a", (f"d{n}", "a.jsonl", n + 1), np.array([*ids, EOS]), 1)
        writer.close()
    return Searcher([build(IndexConfig(str(folder / "shards"), processes=1))])


def match_of(searcher: Searcher, ids: Sequence[int]) -> Match:
    ranges = searcher.find(ids)
    return Match(0, len(ids), list(ids), ranges, ranges.count, 0.0)


def hold(searcher: Searcher, config: DocumentsConfig, *spans: Sequence[int]) -> list[Held]:
    return DocumentReader(searcher).hold([match_of(searcher, span) for span in spans], config)


def name(reader: DocumentReader, key: DocumentKey) -> str:
    return reader.row(key).id


def test_documents_of_equal_tokens_are_one(tmp_path: Path) -> None:
    same = [1, 2, *SPAN, 3]
    searcher = write_ids(tmp_path, [same, [5, *SPAN, 4, 5, 6], same, [4, 5, *SPAN, 4], same], max_tokens_per_file=15)
    reader = DocumentReader(searcher)
    held = reader.hold([match_of(searcher, SPAN)], DocumentsConfig())
    found = [({name(reader, h.key), *(name(reader, c) for c in h.copies)}, h.offsets) for h in held]
    assert sorted(found, key=lambda f: min(f[0])) == [({"d0", "d2", "d4"}, {0: [2]}), ({"d1"}, {0: [1]}), ({"d3"}, {0: [2]})]


@pytest.mark.parametrize("change", [0, 300, 599])
def test_documents_that_differ_in_one_token_are_two(tmp_path: Path, change: int) -> None:
    first = [*np.random.default_rng(0).integers(10, 1000, 600).tolist(), *SPAN]
    second = [*first]
    second[change] = 3
    held = hold(write_ids(tmp_path, [first, second]), DocumentsConfig(), SPAN)
    assert len(held) == 2
    assert not any(h.copies for h in held)


def test_more_are_drawn_where_copies_are_found(tmp_path: Path) -> None:
    documents = [[1, *SPAN]] * 200 + [[n, *SPAN, n] for n in range(10, 13)]
    held = hold(write_ids(tmp_path, documents), DocumentsConfig(per_span=7), SPAN)
    assert len(held) == 4


def test_no_more_than_per_span_texts_are_drawn_and_the_seed_decides(tmp_path: Path) -> None:
    documents = [[n, *SPAN] for n in range(10, 90)]
    searcher = write_ids(tmp_path, documents)

    def drawn(seed: int) -> list[int]:
        return [h.key.ordinal for h in hold(searcher, DocumentsConfig(per_span=6, seed=seed), SPAN)]

    assert len(drawn(1)) == 6
    assert drawn(1) == drawn(1)
    assert {tuple(drawn(seed)) for seed in range(5)} != {tuple(drawn(1))}
    often = np.bincount(np.concatenate([drawn(seed) for seed in range(200)]), minlength=80)
    assert often.min() > 0  # every document is drawn at some time: 200 * 6 / 80 = 15 times each on average


def test_a_document_that_holds_a_span_many_times_is_one_with_some_snippets(tmp_path: Path) -> None:
    searcher = write_ids(tmp_path, [[*SPAN, 1] * 20, [2, *SPAN]])
    held = hold(searcher, DocumentsConfig(per_span=50), SPAN)
    assert [h.offsets for h in held] == [{0: [0, 4, 8][:MOST_SNIPPETS]}, {0: [1]}]


def test_a_document_that_holds_two_spans_is_one(tmp_path: Path) -> None:
    searcher = write_ids(tmp_path, [[1, *SPAN, 4, 5, 6, 1], [4, 5, 6]])
    held = hold(searcher, DocumentsConfig(), SPAN, [4, 5, 6])
    assert [h.offsets for h in held] == [{0: [1], 1: [4]}, {1: [0]}]


def test_a_copy_is_known_whichever_span_found_it(tmp_path: Path) -> None:
    same = [1, *SPAN, 4, 5, 6]
    searcher = write_ids(tmp_path, [same, same])
    for per_span in (1, 2):
        (held,) = hold(searcher, DocumentsConfig(per_span=per_span), SPAN, [4, 5, 6])
        assert held.offsets == {0: [1], 1: [4]}


# ---- context -------------------------------------------------------------------------------------------------------------


def test_context_ends_where_the_document_does(traced: Traced) -> None:
    trace = opened(traced.run)
    reader, ids = trace.documents, trace.searcher.tokenizer.encode(EDGE)
    (held,) = reader.hold([match_of(trace.searcher, ids[-6:])], DocumentsConfig())
    context = reader.context(held.key, held.offsets[0][0], 6, 1000)
    assert "".join(context.parts) == context.shown == EDGE
    assert not context.is_cut_before
    assert not context.is_cut_after
    assert context.parts[3] == ""  # no end-of-text


def test_context_is_cut_to_its_tokens(traced: Traced) -> None:
    trace = opened(traced.run)
    reader, tokenizer = trace.documents, trace.searcher.tokenizer
    ids = tokenizer.encode(f" {PLANTED}")
    (held,) = reader.hold([match_of(trace.searcher, ids)], DocumentsConfig())
    whole = reader.context(held.key, held.offsets[0][0], len(ids), 10**6)
    some = reader.context(held.key, held.offsets[0][0], len(ids), 5)
    none = reader.context(held.key, held.offsets[0][0], len(ids), 0)
    assert whole.parts[2] == some.parts[2] == none.parts[2] == f" {PLANTED}"
    assert some.is_cut_before
    assert some.is_cut_after
    assert whole.parts[1].endswith(some.parts[1])
    assert whole.parts[3].startswith(some.parts[3])
    assert 0 < len(tokenizer.encode(some.parts[3])) <= 5
    assert none.parts[1] == none.parts[3] == ""


def test_cut_characters_are_left_out_at_the_edges_and_kept_inside(traced: Traced) -> None:
    """Every span and context of a document of several bytes per character: no U+FFFD, and the parts are pieces of the text."""
    trace = opened(traced.run)
    tokenizer = trace.searcher.tokenizer
    text = f"{COPIED} 日本語."
    ids = tokenizer.encode(f"the {text}")[1:]
    corpus = trace.searcher.corpora[0]
    n, ordinal = next((n, o) for name in "abc" for n, o in corpus.find_document(id_that(False, f"copy-{name}")))
    file = corpus.files[n]
    start, end = file.index.span(ordinal)
    whole = tokenizer.decode(file.read(start, end - 1))
    assert whole.endswith(text)
    reader = SnippetReader(tokenizer, 400)
    for a in range(end - 12, end - 1):
        for b in range(a + 1, end):
            for context in (0, 1, 3):
                parts = reader.read(file, (start, end - 1), (a, b), context).parts
                assert "�" not in "".join(parts)
                assert "".join(parts) in whole
    assert len(ids) > 10


def test_bytes_that_are_no_text_are_shown_as_such(tmp_path: Path, traced: Traced) -> None:
    tokenizer = Tokenizer(traced.shards / "tokenizer.json")
    table = tokenizer.id_bytes()
    assert table is not None
    bad = [next(i for i, piece in enumerate(table) if piece == byte) for byte in (b"\xe6", b"\x97", b"A", b"\xff", b"B")]
    with ShardWriter(tmp_path / "shards", WriterOptions("uint16", 400, EOS)) as writer:
        writer.add("a", ("x", "x", 1), np.array([*bad, bad[0], EOS]), 1)
        writer.close()
    (file,) = Corpus(tmp_path / "shards").files
    context = SnippetReader(tokenizer, 400).read(file, (0, 6), (2, 5), 10)
    assert context.parts[2] == "A�B"
    assert context.shown.count("A") == context.shown.count("B") == 1
    assert len(context.shown) <= 5


def test_rows_are_those_of_the_sidecar(traced: Traced) -> None:
    trace = opened(traced.run)
    reader = trace.documents
    for n, file in enumerate(trace.searcher.corpora[0].files):
        for ordinal in range(file.entry.documents):
            key = DocumentKey(0, n, ordinal, *file.index.span(ordinal))
            assert reader.row(key) == file.index.row(ordinal)


def test_a_span_that_stands_often_in_one_document(traced: Traced) -> None:
    trace = opened(traced.run)
    ids = trace.searcher.tokenizer.encode(f" {REPEATED}")
    match = match_of(trace.searcher, ids)
    assert match.count == 4  # the first one has no space before it
    (held,) = trace.documents.hold([match], DocumentsConfig())
    assert len(held.offsets[0]) == MOST_SNIPPETS
