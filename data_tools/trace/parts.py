"""Opened indexes and their parts: the arrays that a search reads, memory-mapped."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.trace.index_folder import (
    KEY,
    STRIDE,
    IndexManifest,
    PartRecord,
    map_array,
    part_path,
    read_index_manifest,
    top_dtype,
)
from data_tools.trace.verify_index import verify_index
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError


@dataclass(frozen=True)
class Part:
    """An opened part. sa, top: by split."""

    corpus: int
    record: PartRecord
    tokens: np.ndarray
    """Of the part."""
    rank_V: np.ndarray
    """Of the index."""
    ends: np.ndarray
    """int64: ends of documents from the beginning of the part; empty where end-of-text marks them."""
    sa: dict[str, np.ndarray]
    top: dict[str, np.ndarray]
    tokens_path: Path = Path()
    sa_paths: dict[str, Path] = field(default_factory=dict)

    def arrays(self, split: str) -> tuple[np.ndarray, ...]:
        """What search_kernels takes first."""
        return self.sa[split], self.top[split], self.tokens, self.rank_V, self.ends

    def check_files(self) -> None:
        """Raises:
        ShardError: a mapped file was cut or taken away: a read beyond its end would not fail but end the process.
        """
        needed = {self.tokens_path: self.record.end * self.tokens.itemsize}
        for split, path in self.sa_paths.items():
            needed |= {path: self.sa[split].nbytes, path.with_suffix(".top"): self.top[split].nbytes}
        for path, n_bytes in needed.items():
            try:
                found = path.stat().st_size
            except OSError as error:
                raise ShardError(f"{path}: {error.strerror}, and it is being searched; put it back") from error
            if found < n_bytes:
                raise ShardError(f"{path}: {found} bytes, {n_bytes} were there when it was opened; put the whole file back")

    def query(self, ids: np.ndarray, eos_id: int | None) -> np.ndarray:
        """uint32: ranks of ids (int64); 0, which matches nothing, for end-of-text and what is beyond the vocabulary."""
        known = (ids >= 0) & (ids < len(self.rank_V))
        if eos_id is not None:
            known &= ids != eos_id
        return np.where(known, self.rank_V[np.where(known, ids, 0)], 0).astype(np.uint32)


@dataclass(frozen=True)
class Index:
    """An opened index."""

    folder: Path
    manifest: IndexManifest
    corpus: Corpus
    rank_V: np.ndarray
    parts: list[Part]


def open_indexes(folders: Sequence[Path], verify: str, cold: bool = False) -> list[Index]:
    """Open indexes that are searched together; `verify`: size, spot (a few blocks of each file) or full.

    `cold`: hold the tables in memory, and read of the rest no page that is not asked for.

    Raises:
        ConfigError: none is given, or they are of different vocabularies or tokenizers. ShardError: an index or its shards are
            damaged, or do not belong together.
    """
    if not folders:
        raise ConfigError("indexes is empty; build an index with `olmo trace index shards=FOLDER` and give its folder")
    manifests = [read_index_manifest(folder) for folder in folders]
    corpora = [_open_corpus(folder, manifest, verify) for folder, manifest in zip(folders, manifests, strict=True)]
    _check_together(folders, corpora)
    return [
        _open_index(number, folder, (manifest, corpus), cold)
        for number, (folder, manifest, corpus) in enumerate(zip(folders, manifests, corpora, strict=True))
    ]


def _open_corpus(folder: Path, manifest: IndexManifest, verify: str) -> Corpus:
    corpus = Corpus(folder / manifest.shards)
    if problems := verify_index(folder, verify, manifest, corpus):
        raise ShardError("\n".join(problems))
    return corpus


def _check_together(folders: Sequence[Path], corpora: list[Corpus]) -> None:
    """One text has one list of ids in all of them."""
    problems = []
    first = corpora[0].manifest
    named = [(f, c.manifest.tokenizer_sha256) for f, c in zip(folders, corpora, strict=True) if c.manifest.tokenizer_sha256]
    for folder, corpus in zip(folders, corpora, strict=True):
        size = corpus.manifest.vocab_size
        if size != first.vocab_size:
            problems.append(
                f"indexes: {folder} has a vocabulary of {size}, {folders[0]} of {first.vocab_size}; indexes that are searched "
                "together must be of one tokenizer: ask them one after the other"
            )
    for folder, sha256 in named:
        if sha256 != named[0][1]:
            problems.append(
                f"indexes: {folder} has the tokenizer {sha256[:16]}..., {named[0][0]} {named[0][1][:16]}...; indexes that are "
                "searched together must be of one tokenizer: ask them one after the other"
            )
    if problems:
        raise ConfigError(problems)


def _open_index(number: int, folder: Path, what: tuple[IndexManifest, Corpus], cold: bool) -> Index:
    manifest, corpus = what
    rank_V = np.array(map_array(folder / "ranks.idx", "<u4", (manifest.vocab_size,)))
    parts = [_open_part((number, folder, corpus, rank_V), record, cold) for record in manifest.parts]
    return Index(folder, manifest, corpus, rank_V, parts)


def _open_part(index: tuple[int, Path, Corpus, np.ndarray], record: PartRecord, cold: bool) -> Part:
    number, folder, corpus, rank_V = index
    file, manifest = corpus.files[record.file], corpus.manifest
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    tokens = _plain(np.memmap(file.path, dtype, "r", shape=(file.entry.tokens,)), cold)[record.start : record.end]
    ends = np.zeros(0, np.int64)
    if not record.separated:
        starts = np.asarray(file.index.starts, np.int64)
        ends = starts[(starts > record.start) & (starts <= record.end)] - record.start
    kind = top_dtype(manifest.vocab_size)
    sa, top, paths = {}, {}, {}
    for split, n in (("train", record.train), ("heldout", record.heldout)):
        paths[split] = part_path(folder, record.number, f"{split}.sa")
        sa[split] = _plain(map_array(paths[split], "<u4", (n,)), cold)
        table = map_array(part_path(folder, record.number, f"{split}.top"), kind, (-(-n // STRIDE), KEY))
        top[split] = np.array(table) if cold else np.asarray(table)
    return Part(number, record, tokens, rank_V, ends, sa, top, file.path, paths)


def _plain(array: np.ndarray, cold: bool) -> np.ndarray:
    """The same memory as a plain array, since numba takes np.memmap by a slow path."""
    if cold and isinstance(array.base, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        array.base.madvise(mmap.MADV_RANDOM)  # else a page that was not asked for brings megabytes around it
    return np.asarray(array)
