"""Suffix arrays against sorted lists, in every kind of shards; and the memory they take."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import PartRange, read_index_manifest
from data_tools.trace.suffixes import INT32_BYTES, memory_bound, sort_part
from olmo_train.data.manifest import read_manifest, write_manifest
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError
from tests.data_tools.trace.indexes import Kind, check_by_sorting, random_documents, write_shards

KINDS = {
    "bytes": Kind(200, "uint8"),
    "sixteen bits": Kind(),
    "all of sixteen bits": Kind(2**16, "uint16"),
    "thirty-two bits": Kind(100_000, "uint32"),
    "more than four times 65,536": Kind(300_000, "uint32"),
    "sixty-four bits": Kind(70_000, "uint64"),
    "no end-of-text": Kind(eos=False),
    "no end-of-text, thirty-two bits": Kind(100_000, "uint32", eos=False),
    "nothing held out": Kind(heldout_frac=0.0),
    "nearly all held out": Kind(heldout_frac=0.95),
}


@pytest.mark.parametrize("max_tokens", [300, 10**6])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_suffixes_are_as_python_sorts_them(tmp_path: Path, kind: Kind, max_tokens: int) -> None:
    for seed in range(2):
        documents = random_documents(np.random.default_rng(seed), 60, kind.vocab_size)
        shards = write_shards(tmp_path / str(seed), documents, kind)
        folder = build(IndexConfig(str(shards), max_tokens_per_part=max_tokens, processes=1))
        manifest = read_index_manifest(folder)
        check_by_sorting(folder, manifest, Corpus(shards))
        assert all(part.separated == kind.eos for part in manifest.parts)


@pytest.mark.parametrize("documents", [[[]], [[], [], []], [[5]], [[], [7, 7, 7], []], []], ids=str)
@pytest.mark.parametrize("eos", [True, False])
def test_empty_documents_and_empty_files_are_fine(tmp_path: Path, documents: list[list[int]], eos: bool) -> None:
    shards = write_shards(tmp_path / "x", documents, Kind(eos=eos, heldout_frac=0.0))
    folder = build(IndexConfig(str(shards), processes=1))
    check_by_sorting(folder, read_index_manifest(folder), Corpus(shards))


def test_a_document_that_does_not_end_in_end_of_text_is_noticed(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "x", [[1, 2, 0], [3, 0], [4, 5]], Kind(eos=False, heldout_frac=0.0))
    manifest = read_manifest(shards)
    manifest.eos_id = 0
    write_manifest(shards, manifest)
    folder = build(IndexConfig(str(shards), max_tokens_per_part=5, processes=1))
    assert [part.separated for part in read_index_manifest(folder).parts] == [True, False]


def test_positions_of_eight_bytes_sort_alike(tmp_path: Path) -> None:
    documents = random_documents(np.random.default_rng(0), 200, 50)
    corpus = Corpus(write_shards(tmp_path / "x", documents))
    part, ranks = PartRange(0, 0, 0, corpus.files[0].entry.tokens), np.arange(1, 51, dtype=np.uint32)
    narrow, wide = (sort_part(corpus.files[0], part, ranks, wide) for wide in (False, True))
    assert (narrow.train.dtype, wide.train.dtype) == (np.int32, np.int64)
    assert np.array_equal(narrow.train, wide.train)
    assert np.array_equal(narrow.heldout, wide.heldout)


class BeingWritten(ShardFile):
    """A token file to which somebody else writes after it was read once."""

    def read(self, start: int, end: int) -> np.ndarray:
        ids = super().read(start, end)
        with open(self.path, "r+b") as file:
            file.seek(6)
            file.write(bytes([9, 0]))
        return ids


def test_shards_that_change_between_two_reads_are_refused(tmp_path: Path) -> None:
    corpus = Corpus(write_shards(tmp_path / "x", [[1, 2, 3, 4, 5]]))
    corpus.manifest.files[0].block_crc32 = None  # as of published shards that were not read: else the block is named
    file = BeingWritten(corpus.files[0].path, corpus.manifest.files[0], corpus.manifest, corpus.files[0].index)
    with pytest.raises(ShardError) as caught:
        sort_part(file, PartRange(0, 0, 0, 6), np.arange(1, 51, dtype=np.uint32))
    assert str(caught.value) == f"{file.path}: tokens from 0 on changed while they were read; let nobody write there"


def test_the_memory_bound_grows_with_tokens_and_documents_and_doubles_positions_in_time() -> None:
    million = memory_bound(10**6, 10**3, 2)
    assert 15 * 10**6 < million < 32 * 2**20 + 20 * 10**6
    assert memory_bound(10**6, 10**6, 2) > million
    fits = (INT32_BYTES - 10**6) // 3
    assert memory_bound(fits + 1, 10**6, 2) - memory_bound(fits, 10**6, 2) > 4 * INT32_BYTES - 100
