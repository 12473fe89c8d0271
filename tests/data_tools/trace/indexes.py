"""Indexes for tests: shards of given documents, and what a suffix array of them must be, by sorting lists."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.trace.index_folder import KEY, STRIDE, IndexManifest, map_array, part_path, top_dtype, top_shape
from olmo_train.data.manifest import read_manifest, write_manifest
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions

EOS = 0


@dataclass(frozen=True)
class Kind:
    """Of shards."""

    vocab_size: int = 50
    dtype: str = "uint16"
    eos: bool = True
    """Documents end in end-of-text."""
    heldout_frac: float = 0.2
    max_tokens_per_file: int = 10**6


def write_shards(folder: Path, documents: list[list[int]], kind: Kind = Kind()) -> Path:
    """Write documents, named document-0, ...; without `eos`, as published shards may be that name no end-of-text."""
    options = WriterOptions(kind.dtype, kind.vocab_size, EOS, kind.heldout_frac, kind.max_tokens_per_file)
    with ShardWriter(folder, options) as writer:
        for n, ids in enumerate(documents):
            whole = [*ids, EOS] if kind.eos else ids
            writer.add("all", (f"document-{n}", "all.jsonl", n + 1), np.array(whole, np.int64), len(ids))
        writer.close()
    if not kind.eos:
        manifest = read_manifest(folder)
        manifest.eos_id = None
        write_manifest(folder, manifest)
    return folder


def random_documents(rng: np.random.Generator, n: int, vocab_size: int, max_length: int = 40) -> list[list[int]]:
    """Documents that share long runs: some are empty, some repeat an earlier one, or go on from it."""
    documents: list[list[int]] = []
    for _ in range(n):
        ids = rng.integers(1, min(vocab_size, rng.choice([3, 10, vocab_size])), int(rng.integers(0, max_length))).tolist()
        if documents and rng.random() < 0.3:
            ids = documents[int(rng.integers(len(documents)))] + (ids if rng.random() < 0.5 else [])
        documents.append(ids)
    return documents


def check_by_sorting(folder: Path, manifest: IndexManifest, corpus: Corpus) -> None:
    """Compare every suffix array, its leading ranks and all unigrams with Python's sort of all suffixes."""
    rank_V = np.fromfile(folder / "ranks.idx", "<u4").astype(int)
    unigrams = np.zeros(len(rank_V), np.int64)
    covered: dict[int, int] = {}
    for record in manifest.parts:
        file = corpus.files[record.file]
        assert record.start == covered.get(record.file, 0)
        covered[record.file] = record.end
        tokens = file.read(record.start, record.end).astype(int)
        suffixes: dict[str, dict[int, list[int]]] = {"train": {}, "heldout": {}}
        for ordinal in file.index.documents_between(record.start, record.end):
            a, b = (offset - record.start for offset in file.index.span(ordinal))
            split = "heldout" if file.index.train_position(a + record.start) is None else "train"
            if split == "train":
                np.add.at(unigrams, tokens[a:b], 1)
            suffixes[split] |= {t: rank_V[tokens[t:b]].tolist() for t in range(a, b)}
        for split, n in (("train", record.train), ("heldout", record.heldout)):
            sa = map_array(part_path(folder, record.number, f"{split}.sa"), "<u4", (n,)).tolist()
            assert sorted(sa) == sorted(suffixes[split])
            found = [suffixes[split][t] for t in sa]
            assert found == sorted(found)
            top = map_array(part_path(folder, record.number, f"{split}.top"), top_dtype(len(rank_V)), top_shape(n))
            assert top.tolist() == [(ranks + [0] * KEY)[:KEY] for ranks in found[::STRIDE]]
    assert covered == {n: file.entry.tokens for n, file in enumerate(corpus.files) if file.entry.tokens}
    assert np.array_equal(np.fromfile(folder / "unigrams.idx", "<i8"), unigrams)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
