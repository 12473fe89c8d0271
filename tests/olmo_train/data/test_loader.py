"""Rows as arrays: labels, documents, masks, padding, and errors from the reading thread."""

from pathlib import Path

import numpy as np
import pytest

from olmo_train.config.data import DataConfig, RepetitionMaskConfig, SourceConfig
from olmo_train.data.loader import (
    IGNORE,
    MIN_OFFSETS,
    Loader,
    document_offsets,
    heldout_batches,
    open_sources,
    prepare_sources,
    read_rows,
)
from olmo_train.data.order import DataOrder, HeldoutStream
from olmo_train.data.shards import ShardWriter, WriterOptions
from olmo_train.errors import ShardError
from tests.corpora import EOS, VOCAB

T, ROWS = 16, 8


def config_of(shards: Path, **values: object) -> DataConfig:
    sources = {"all": SourceConfig(path=str(shards))}
    return DataConfig(sources=sources, seq_len=T, global_batch_size=T * ROWS, micro_batch_size=T * 2, **values)  # type: ignore[arg-type]


def loader_of(config: DataConfig) -> Loader:
    return Loader(DataOrder(open_sources(config, Path()), 1, T, T * ROWS), config, 0, 1)


def test_labels_are_the_next_ids_and_the_last_position_has_none(shards: Path) -> None:
    rows = loader_of(config_of(shards)).read(3)
    assert np.array_equal(rows.labels[:, :-1], rows.ids[:, 1:])
    assert (rows.labels[:, -1] == IGNORE).all()
    assert rows.n_targets == ROWS * (T - 1)
    assert rows.documents is None


def test_documents_are_numbered_by_their_ends(shards: Path) -> None:
    rows = loader_of(config_of(shards, document_masking=True)).read(3)
    assert rows.documents is not None
    for ids, documents in zip(rows.ids, rows.documents, strict=True):
        ends = np.flatnonzero(ids == EOS)  # in this corpus EOS ends documents and nothing else
        expected = np.searchsorted(ends, np.arange(T), side="left")
        assert np.array_equal(documents, expected)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 50), (4, 37), (5, 64)])
def test_offsets_are_where_the_document_changes(shape: tuple[int, int], share: float) -> None:
    rng = np.random.default_rng(3)
    documents = np.cumsum(rng.random(shape) < share, axis=1).astype(np.int32)
    expected = []
    for b, row in enumerate(documents):
        for t in range(len(row)):
            if t == 0 or row[t] != row[t - 1]:
                expected.append(b * shape[1] + t)
    offsets = document_offsets(documents)
    assert offsets.dtype == np.int32
    assert offsets[: len(expected)].tolist() == expected
    assert (offsets[len(expected) :] == documents.size).all()
    # At least one end, and few different lengths: those of torch.compile's and the kernels' inputs.
    assert len(offsets) > len(expected)
    assert len(offsets) == MIN_OFFSETS or (len(offsets) & (len(offsets) - 1) == 0 and len(offsets) // 2 <= len(expected))


def test_offsets_agree_with_the_lengths_of_the_documents(shards: Path) -> None:
    rows = loader_of(config_of(shards, document_masking=True)).read(3)
    assert rows.documents is not None
    lengths = [n for row in rows.documents for n in np.bincount(row)]
    offsets = document_offsets(rows.documents)
    assert np.diff(offsets)[: len(lengths)].tolist() == lengths
    part = rows.slice(2, 4)  # a micro-batch counts from its own first token
    assert part.documents is not None
    assert document_offsets(part.documents)[0] == 0
    assert document_offsets(part.documents)[-1] == 2 * T


def test_a_row_that_repeats_itself_is_left_out_of_the_loss(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x", WriterOptions("uint16", VOCAB, EOS)) as writer:
        writer.add("a", ("good", "f", 1), np.arange(1, 65), 1)
        writer.add("a", ("bad", "f", 2), np.tile([5, 6], 32), 1)
        writer.close()
    loader = loader_of(config_of(tmp_path / "x", repetition_mask=RepetitionMaskConfig(1, 3, 8)))
    rows = loader.read(1)
    bad = (rows.ids == 5).any(1) & (rows.ids == 6).any(1) & (rows.ids[:, 0] == rows.ids[:, 2])
    assert bad.sum() == 4
    assert np.array_equal(rows.masked, bad)
    assert (rows.labels[bad] == IGNORE).all()
    assert rows.n_targets == 4 * (T - 1)


def test_reading_ahead_gives_the_same_steps(shards: Path) -> None:
    loader = loader_of(config_of(shards))
    ahead = list(loader.steps(3, 9))
    assert [step for step, _ in ahead] == list(range(3, 10))
    for step, rows in ahead:
        assert np.array_equal(rows.ids, loader.read(step).ids)


def test_stopping_early_ends_the_thread(shards: Path) -> None:
    steps = loader_of(config_of(shards)).steps(1, 10_000)
    next(steps)
    steps.close()  # type: ignore[attr-defined]  # joins the thread; would hang here


def test_an_error_while_reading_ahead_reaches_the_trainer(shards: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x", WriterOptions("uint16", VOCAB, EOS)) as writer:
        writer.add("a", ("d", "f", 1), np.ones(T * ROWS * 2, int), 1)
        writer.close()
    path = tmp_path / "x/a/part-00000.npy"
    loader = loader_of(config_of(tmp_path / "x"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ShardError, match="the file was truncated"):
        list(loader.steps(1, 2))


def test_held_out_batches_cover_every_token_once_on_any_number_of_ranks(shards: Path) -> None:
    config = config_of(shards)
    files = [f for source in open_sources(config, Path()) for f in source.files]
    stream = HeldoutStream(files, T)
    expected = sum(f.entry.heldout_tokens for f in files)
    for n_ranks in (1, 2, 3):
        batches = [list(heldout_batches(stream, config, (rank, n_ranks), 10_000)) for rank in range(n_ranks)]
        assert len({len(b) for b in batches}) == 1  # all ranks take part in the same number of passes
        lengths = 0
        for batch in batches:
            for rows in batch:
                lengths += 0 if rows is None else int((rows.labels != IGNORE).sum()) + len(rows.ids)
        assert lengths == expected
    limited = [rows for rows in heldout_batches(stream, config, (0, 1), 3) if rows]
    assert sum(len(rows.ids) for rows in limited) == 3


def test_the_short_last_instance_is_padded_and_not_predicted(shards: Path) -> None:
    files = [f for source in open_sources(config_of(shards), Path()) for f in source.files]
    stream = HeldoutStream(files, 100_000)
    rows = read_rows([stream.pieces(0)], 100_000, True, None)
    assert rows.n_targets == stream.tokens - 1
    assert (rows.ids[0, stream.tokens :] == 0).all()
    assert rows.documents is not None
    assert rows.documents[0, stream.tokens] == rows.documents[0, stream.tokens - 1] + 1


def test_published_files_get_a_manifest_in_the_run_folder(shards: Path, tmp_path: Path) -> None:
    source = SourceConfig(files=[str(shards / "a/*.npy")], dtype="uint16")
    config = DataConfig(sources={"web": source}, seq_len=T, global_batch_size=T * ROWS, micro_batch_size=T)
    with pytest.raises(ShardError, match="does not exist"):
        open_sources(config, tmp_path)
    prepare_sources(config, tmp_path, VOCAB)
    before = (tmp_path / "web/manifest.json").read_bytes()
    prepare_sources(config, tmp_path, VOCAB)  # a second start finds it
    assert (tmp_path / "web/manifest.json").read_bytes() == before
    (opened,) = open_sources(config, tmp_path)
    assert sum(f.entry.documents for f in opened.files) == 150
