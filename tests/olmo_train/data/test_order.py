"""The data order: pure, invertible, complete, and the same whoever asks."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from olmo_train.config.data import DataConfig, SourceConfig
from olmo_train.data import order as order_module
from olmo_train.data.document_index import DocumentIndex, is_heldout
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.manifest import FileEntry, Manifest
from olmo_train.data.order import DataOrder, Source
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError
from tests.corpora import Spec, write_corpus

T, ROWS = 16, 8


def make_order(shards: Path, weights: dict[str, float] | None = None, seed: int = 1) -> DataOrder:
    if weights is None:
        config = DataConfig(sources={"all": SourceConfig(path=str(shards))})
    else:
        config = DataConfig(sources={name: SourceConfig(path=str(shards), select=name, weight=w) for name, w in weights.items()})
    return DataOrder(open_sources(config, shards), seed, T, T * ROWS)


@pytest.fixture(params=[None, {"a": 3.0, "b": 1.0}], ids=["natural", "weighted"])
def order(request: pytest.FixtureRequest, shards: Path, monkeypatch: pytest.MonkeyPatch) -> DataOrder:
    monkeypatch.setattr(order_module, "BLOCK", 64)  # so that tests cross many blocks
    return make_order(shards, request.param)


def test_document_to_steps_to_batch_closes_the_circle(order: DataOrder) -> None:
    """Every sighting of every document, against reading all batches of several epochs."""
    last = 3 * sum(order.instances_per_epoch().values()) // ROWS
    seen: dict[tuple[str, int], list[tuple[int, ...]]] = defaultdict(list)
    for step in range(1, last + 1):
        for instance in order.batch(step):
            for span in order.documents(instance):
                key = (str(span.file.path), span.ordinal)
                seen[key].append(
                    (step, span.row, instance.epoch, span.column_start, span.column_end, span.offset_start, span.offset_end)
                )
    checked = 0
    for source in order.sources:
        for file in source.files:
            for ordinal in range(file.entry.documents):
                start, end = file.index.span(ordinal)
                found = order.sightings(file, start, end, last)
                as_tuples = [(s.step, s.row, s.epoch, s.column_start, s.column_end, s.offset_start, s.offset_end) for s in found]
                assert sorted(as_tuples) == sorted(seen[(str(file.path), ordinal)])
                checked += len(found)
    assert checked == sum(map(len, seen.values())) > 1000
    assert max(epoch for sightings in seen.values() for _, _, epoch, *_ in sightings) >= 2


def test_an_epoch_sees_every_instance_once(shards: Path) -> None:
    order = make_order(shards)
    n = order.instances_per_epoch()["all"]
    rows = [
        (i.epoch, i.pieces[0].file.path, i.pieces[0].start) for step in range(1, 3 * n // ROWS + 1) for i in order.batch(step)
    ][: 3 * n]
    for epoch in range(3):
        places = [row[1:] for row in rows if row[0] == epoch]
        assert len(set(places)) == len(places)
        assert abs(len(places) - n) < ROWS
    first, second = ([r[1:] for r in rows if r[0] == e] for e in (0, 1))
    assert first != second  # every epoch is shuffled anew
    assert [r[0] for r in rows] == sorted(r[0] for r in rows)


def test_rows_are_the_tokens_of_the_train_stream(order: DataOrder) -> None:
    for instance in order.batch(5):
        assert sum(p.end - p.start for p in instance.pieces) == T
        for piece in instance.pieces:
            for ordinal in piece.file.index.documents_between(piece.start, piece.end):
                assert not is_heldout(piece.file.index.row(ordinal).id, 0.05)


def test_held_out_documents_are_never_seen(order: DataOrder) -> None:
    held = 0
    for source in order.sources:
        for file in source.files:
            for ordinal in range(file.entry.documents):
                row = file.index.row(ordinal)
                if is_heldout(row.id, 0.05):
                    held += 1
                    assert order.sightings(file, row.start, row.end, 10_000) == []
    assert held > 5


def test_weights_hold_exactly_over_a_block_and_roughly_before(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "BLOCK", 1024)
    order = make_order(shards, {"a": 0.7, "b": 0.3})
    counts = Counter(i.source for step in range(1, 2 * 1024 // ROWS + 1) for i in order.batch(step))
    assert counts == {"a": 2 * 717, "b": 2 * 307}
    part = Counter(i.source for step in range(1, 33) for i in order.batch(step))
    assert 0.6 < part["a"] / (32 * ROWS) < 0.8


def test_with_weights_too_every_instance_comes_once_before_any_comes_twice(shards: Path) -> None:
    order = make_order(shards, {"a": 1.0, "b": 5.0})
    n = order.instances_per_epoch()
    rows = [i for step in range(1, 4 * n["b"] // ROWS) for i in order.batch(step)]
    for source in ("a", "b"):
        mine = [i for i in rows if i.source == source]
        assert [i.epoch for i in mine] == [k // n[source] for k in range(len(mine))]
        first = [(str(i.pieces[0].file.path), i.pieces[0].start) for i in mine if i.epoch == 0]
        assert len(set(first)) == len(first)
    assert {i.epoch for i in rows if i.source == "b"} >= {0, 1, 2}


def test_a_weight_too_small_to_be_drawn_is_refused(shards: Path) -> None:
    with pytest.raises(ShardError, match=r"data\.sources\.b\.weight=1e-09 is less than 1/16384 of the sum of weights"):
        make_order(shards, {"a": 1.0, "b": 1e-9})


def test_a_source_without_one_instance_is_refused(shards: Path) -> None:
    config = DataConfig(sources={"all": SourceConfig(path=str(shards))})
    with pytest.raises(ShardError, match=r"source all: no file has seq_len=1000000 training tokens"):
        DataOrder(open_sources(config, shards), 1, 1_000_000, 1_000_000)


def test_selecting_a_source_that_is_not_there(shards: Path) -> None:
    config = DataConfig(sources={"x": SourceConfig(path=str(shards), select="web")})
    with pytest.raises(ShardError, match=r"data\.sources\.x\.select=web is not a source of .*; it has a, b"):
        open_sources(config, shards)


def test_the_key_changes_with_whatever_changes_the_order(shards: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", Spec(seed=5))
    keys = [
        make_order(shards).key,
        make_order(shards, seed=2).key,
        make_order(shards, {"a": 1.0, "b": 1.0}).key,
        make_order(shards, {"a": 1.0, "b": 2.0}).key,
        make_order(tmp_path / "other").key,
    ]
    assert len({key["sha256"] for key in keys}) == len(keys)
    assert make_order(shards).key == make_order(shards).key


def test_the_batch_is_the_same_for_any_number_of_ranks(shards: Path) -> None:
    config = DataConfig(
        sources={"all": SourceConfig(path=str(shards))}, seq_len=T, global_batch_size=T * ROWS, micro_batch_size=T
    )
    order = make_order(shards)
    whole = Loader(order, config, 0, 1)
    for n_ranks in (2, 4, 8):
        loaders = [Loader(order, config, rank, n_ranks) for rank in range(n_ranks)]
        for step in (1, 2, 57):
            parts = [loader.read(step) for loader in loaders]
            assert np.array_equal(np.concatenate([p.ids for p in parts]), whole.read(step).ids)
            assert np.array_equal(np.concatenate([p.labels for p in parts]), whole.read(step).labels)
            checksums = sum(part.checksum(loader.first_row) for part, loader in zip(parts, loaders, strict=True))
            assert checksums % 2**62 == whole.read(step).checksum(0)


def huge_file(folder: Path, name: str, tokens: int) -> ShardFile:
    """A token file that is described but does not exist: 10 documents in `tokens` tokens."""
    folder.mkdir(exist_ok=True)
    for suffix, array in {"starts": np.linspace(0, tokens, 11).astype(np.uint64), "heldout": np.zeros((0, 3), np.int64)}.items():
        with open(folder / f"{name}.{suffix}.idx", "wb") as file:
            np.save(file, array)
    entry = FileEntry(f"{name}.npy", name, tokens, 10, 0, 0, None, None, None, name, f"{name}.csv.gz")
    return ShardFile(
        folder / f"{name}.npy",
        entry,
        Manifest("uint16", 50280, 50279, 0.0),
        DocumentIndex(folder / name, folder / f"{name}.csv.gz"),
    )


@pytest.mark.parametrize("weights", [(None, None), (0.9, 0.1)])
def test_trillions_of_tokens_need_no_table(tmp_path: Path, weights: tuple[float | None, float | None]) -> None:
    files = [huge_file(tmp_path, "web", 3 * 10**12), huge_file(tmp_path, "code", 10**12)]
    sources = [Source(f.entry.source, w, (f,), "x") for f, w in zip(files, weights, strict=True)]
    order = DataOrder(sources, 6198, 4096, 4_194_304)
    assert order.rows == 1024
    for step in (1, 600_000, 1_200_000):
        instance = order.batch(step, 1000, 1001)[0]
        (piece,) = instance.pieces
        found = order.sightings(piece.file, piece.start, piece.start + 1, 1_223_842)
        assert (step, 1000) in [(s.step, s.row) for s in found]
        assert [s.epoch for s in found] == list(range(len(found)))


def test_the_order_of_one_seed_never_changes(shards: Path) -> None:
    """A release is only reproducible while this holds: change ALGORITHM with the order."""
    order = make_order(shards, {"a": 2.0, "b": 1.0}, seed=6198)
    files = {id(f): i for i, f in enumerate(f for s in order.sources for f in s.files)}
    places = [(i.source, i.epoch, files[id(i.pieces[0].file)], i.pieces[0].start) for i in order.batch(3)]
    assert order_module.ALGORITHM == "olmo_train.order.1"
    assert places == EXPECTED


EXPECTED = [
    ('a', 0, 0, 1818), ('a', 0, 1, 992), ('a', 0, 0, 1015), ('b', 0, 2, 192), ('a', 0, 0, 3773), ('b', 0, 2, 4121), ('a', 0, 0, 3165), ('b', 0, 3, 151)]  # fmt: skip


def test_corpus_files_share_the_order_with_their_manifest(shards: Path) -> None:
    assert [f.path for s in make_order(shards).sources for f in s.files] == [f.path for f in Corpus(shards).files]
