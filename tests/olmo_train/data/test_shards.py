"""The shard format: what is written is read, published files are read unchanged, and damage is named with its place."""

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from olmo_train.data.describe import DescribeOptions, describe_shards
from olmo_train.data.document_index import DocumentRow, is_heldout, read_rows
from olmo_train.data.manifest import read_manifest
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions, dtype_for
from tests.corpora import EOS, VOCAB, Spec, document_ids, write_corpus
from tests.olmo_train.data.published import describe, dolma_shard


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "own")
    return tmp_path / "own"


# ---- reading and writing -------------------------------------------------------------------------------------------------


def test_documents_come_back_with_ids_places_and_rows(own: Path) -> None:
    corpus = Corpus(own)
    rng = np.random.default_rng(0)
    written = {("a" if n % 2 == 0 else "b") + f"/{n}": document_ids(rng, 120) for n in range(300)}
    seen = 0
    for file in corpus.files:
        assert file.entry.tokens <= 6000
        for ordinal in range(file.entry.documents):
            row = file.index.row(ordinal)
            assert np.array_equal(file.read(row.start, row.end), written[row.id])
            assert (row.src, row.loc) == (f"{row.id[0]}.jsonl", int(row.id[2:]) + 1)
            assert file.index.find(row.id) == [ordinal]
            seen += 1
    assert seen == 300
    assert corpus.find_document("a/0") != []
    assert corpus.find_document("a/1") == []


def test_the_bytes_are_dolmas(own: Path) -> None:
    """A headerless array, and a gzipped csv without header that the standard library reads."""
    for entry in read_manifest(own).files:
        tokens = np.fromfile(own / entry.path, "<u2")
        assert len(tokens) == entry.tokens
        with gzip.open(own / entry.rows, "rt", newline="") as file:
            spans = [(int(r[0]), int(r[1])) for r in csv.reader(file)]
        assert [a for a, _ in spans] == [0, *[b for _, b in spans[:-1]]]
        assert spans[-1][1] == entry.tokens
        assert all(tokens[b - 1] == EOS for _, b in spans)


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_corpus(tmp_path / name)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path


def test_32_bit_vocabularies(tmp_path: Path) -> None:
    assert (dtype_for(65536), dtype_for(65537)) == ("uint16", "uint32")
    options = WriterOptions("uint32", 100_278, 100_257)
    with ShardWriter(tmp_path / "x", options) as writer:
        writer.add("a", ("d", "f", 1), np.array([100_277, 65_536, 100_257]), 3)
        writer.close()
    assert Corpus(tmp_path / "x").files[0].read(0, 3).tolist() == [100_277, 65_536, 100_257]


def test_published_shards_are_read_unchanged(tmp_path: Path) -> None:
    documents = dolma_shard(tmp_path / "web")
    before = {p: p.read_bytes() for p in (tmp_path / "web").iterdir()}
    corpus = describe(tmp_path / "web", tmp_path / "manifest", heldout_frac=0.2)
    assert {p: p.read_bytes() for p in (tmp_path / "web").iterdir()} == before
    file = corpus.files[0]
    for i, ids in enumerate(documents):
        row = file.index.row(i)
        assert row.id == f'doc "{i}", of\nit'
        assert np.array_equal(file.read(row.start, row.end), ids)
    assert corpus.verify("full") == []
    assert corpus.check_ids() == []
    held = [i for i in range(len(documents)) if is_heldout(f'doc "{i}", of\nit', 0.2)]
    assert file.entry.heldout_documents == len(held) > 0


def test_describing_on_several_processes_changes_nothing(tmp_path: Path) -> None:
    for i in range(3):
        dolma_shard(tmp_path / "web", f"part-{i}-00000", n=10 + i)
    options = DescribeOptions("uint16", VOCAB, EOS)
    one = describe_shards({"web": [str(tmp_path / "web/*.npy")]}, tmp_path / "one", options, processes=1)
    two = describe_shards({"web": [str(tmp_path / "web/*.npy")]}, tmp_path / "two", options, processes=2)
    assert one.fingerprint() == two.fingerprint()
    assert (tmp_path / "one/manifest.json").read_bytes() == (tmp_path / "two/manifest.json").read_bytes()


def test_documents_can_be_inferred_where_there_is_no_sidecar(tmp_path: Path) -> None:
    documents = dolma_shard(tmp_path / "web")
    (tmp_path / "web/part-0-00000.csv.gz").unlink()
    corpus = describe(tmp_path / "web", tmp_path / "manifest", infer_documents=True)
    assert [np.diff(corpus.files[0].index.starts).tolist()] == [[len(d) for d in documents]]
    assert corpus.files[0].index.row(3).id == "part-0-00000.npy:3"


def test_the_fingerprint_is_of_contents_not_paths(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "copy")
    assert read_manifest(own).fingerprint() == read_manifest(tmp_path / "copy").fingerprint()
    write_corpus(tmp_path / "other", Spec(seed=1))
    assert read_manifest(own).fingerprint() != read_manifest(tmp_path / "other").fingerprint()


# ---- held-out documents ----------------------------------------------------------------------------------------------------


def test_the_split_is_by_document_and_covers_every_token(own: Path) -> None:
    for file in Corpus(own).files:
        n_train = file.entry.tokens - file.entry.heldout_tokens
        train = [t for a, b in file.index.train_pieces(0, n_train) for t in range(a, b)]
        held = [t for a, b in file.index.heldout_pieces(0, file.entry.heldout_tokens) for t in range(a, b)]
        assert sorted(train + held) == list(range(file.entry.tokens))
        for ordinal in range(file.entry.documents):
            row = file.index.row(ordinal)
            inside = is_heldout(row.id, 0.05)
            assert all((t in held) == inside for t in range(row.start, row.end))
        for position in (0, n_train // 3, n_train - 1):
            ((offset, _),) = file.index.train_pieces(position, position + 1)
            assert file.index.train_position(offset) == position
        assert all(file.index.train_position(t) is None for t in held)


def test_every_cut_of_the_streams_is_the_same_cut_of_the_whole(own: Path) -> None:
    file = Corpus(own).files[0]
    n = file.entry.tokens - file.entry.heldout_tokens
    whole = [t for a, b in file.index.train_pieces(0, n) for t in range(a, b)]
    held = [t for a, b in file.index.heldout_pieces(0, file.entry.heldout_tokens) for t in range(a, b)]
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = np.sort(rng.integers(0, n + 1, 2)).tolist()
        assert [t for x, y in file.index.train_pieces(a, b) for t in range(x, y)] == whole[a:b]
        a, b = np.sort(rng.integers(0, len(held) + 1, 2)).tolist()
        assert [t for x, y in file.index.heldout_pieces(a, b) for t in range(x, y)] == held[a:b]


def test_a_split_of_nothing_and_of_everything(tmp_path: Path) -> None:
    write_corpus(tmp_path / "none", Spec(heldout_frac=0.0))
    write_corpus(tmp_path / "most", Spec(heldout_frac=0.999999))
    assert all(f.entry.heldout_tokens == 0 for f in Corpus(tmp_path / "none").files)
    for file in Corpus(tmp_path / "most").files:
        assert file.index.heldout_pieces(0, file.entry.tokens) == [(0, file.entry.tokens)]


# ---- the index -----------------------------------------------------------------------------------------------------------


def test_a_document_longer_than_a_file_gets_a_file_of_its_own(tmp_path: Path) -> None:
    """Dolma's writer loops forever here."""
    with ShardWriter(tmp_path / "x", WriterOptions("uint16", VOCAB, EOS, max_tokens_per_file=10)) as writer:
        for i, n in enumerate((4, 50, 4, 4)):
            writer.add("a", (f"d{i}", "f", i), np.ones(n, int), n)
        manifest = writer.close()
    assert [entry.tokens for entry in manifest.files] == [4, 50, 8]


def test_documents_between_finds_what_overlaps(own: Path) -> None:
    index = Corpus(own).files[0].index
    rows = [index.row(i) for i in range(len(index.starts) - 1)]
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = np.sort(rng.integers(0, rows[-1].end + 1, 2)).tolist()
        expected = [i for i, row in enumerate(rows) if row.start < b and row.end > a]
        assert (list(index.documents_between(a, b)) == expected) or a == b


def test_rows_of_many_blocks(tmp_path: Path) -> None:
    from olmo_train.data.document_index import DocumentIndex, write_index

    rows = [DocumentRow(2 * i, 2 * i + 2, f"d{i}", 's,"x"\n', i) for i in range(3000)]
    counts = write_index(tmp_path / "i", tmp_path / "i.csv.gz", rows, 6000, 0.1)
    index = DocumentIndex(tmp_path / "i", tmp_path / "i.csv.gz")
    assert counts.documents == 3000
    for i in (0, 1023, 1024, 2047, 2048, 2999):
        assert index.row(i) == rows[i]
    assert list(read_rows(tmp_path / "i.csv.gz")) == rows  # and as one gzip stream
