"""Find tokens in indexed shards: exact counts, every occurrence, and how much of a text stands there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_tools.trace.answer import Place
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
from data_tools.trace.search_kernels import find_range, longest_prefixes
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ConfigError, ShardError
from olmo_train.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """An opened part. sa, top: by split."""

    corpus: int
    record: PartRecord
    tokens: np.ndarray
    """Of the part, memory-mapped."""
    ends: np.ndarray
    """int64: ends of documents from the beginning of the part; empty where end-of-text marks them."""
    sa: dict[str, np.ndarray]
    top: dict[str, np.ndarray]


@dataclass(frozen=True)
class Ranges:
    """Where some tokens stand: int64 (parts, 2), [first, last) in the suffix array of each part."""

    split: str
    ranges_P2: np.ndarray

    @property
    def count(self) -> int:
        """Occurrences."""
        return int((self.ranges_P2[:, 1] - self.ranges_P2[:, 0]).sum())


class Searcher:
    """Indexes opened together; they must share a tokenizer. Thread-safe."""

    def __init__(self, folders: Sequence[str | Path], verify: str = "spot") -> None:
        """Raises:
        ConfigError: no index is given, or they are of different vocabularies. ShardError: an index or its shards are damaged, or
            do not belong together.
        """
        if not folders:
            raise ConfigError("indexes is empty; build an index with `olmo trace index shards=FOLDER` and give its folder")
        self.folders = [Path(folder) for folder in folders]
        self.manifests: list[IndexManifest] = [read_index_manifest(folder) for folder in self.folders]
        self.corpora: list[Corpus] = []
        for folder, manifest in zip(self.folders, self.manifests, strict=True):
            corpus = Corpus(folder / manifest.shards)
            if corpus.manifest.fingerprint() != manifest.fingerprint:
                raise ShardError(
                    f"{folder}: the index is of the shards with fingerprint {manifest.fingerprint[:16]}..., {corpus.folder} has "
                    f"{corpus.manifest.fingerprint()[:16]}...: the shards were changed or exchanged; build the index again"
                )
            self.corpora.append(corpus)
        self.vocab_size = self.manifests[0].vocab_size
        self._ranks = [map_array(folder / "ranks.idx", "<u4", (self.vocab_size,)) for folder in self.folders]
        self.parts = [
            self._open(number, folder, record)
            for number, (folder, manifest) in enumerate(zip(self.folders, self.manifests, strict=True))
            for record in manifest.parts
        ]

    def _open(self, number: int, folder: Path, record: PartRecord) -> Part:
        corpus = self.corpora[number]
        file, manifest = corpus.files[record.file], corpus.manifest
        file.check_size()
        dtype = np.dtype(manifest.dtype).newbyteorder("<")
        tokens = np.memmap(file.path, dtype, "r", shape=(file.entry.tokens,))[record.start : record.end]
        ends = np.zeros(0, np.int64)
        if not record.separated:
            starts = np.asarray(file.index.starts, np.int64)
            ends = starts[(starts > record.start) & (starts <= record.end)] - record.start
        sizes = {"train": record.train, "heldout": record.heldout}
        sa = {s: map_array(part_path(folder, record.number, f"{s}.sa"), "<u4", (n,)) for s, n in sizes.items()}
        kind = top_dtype(self.vocab_size)
        top = {s: map_array(part_path(folder, record.number, f"{s}.top"), kind, (-(-n // STRIDE), KEY)) for s, n in sizes.items()}
        return Part(number, record, tokens, ends, sa, top)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the first index whose manifest names one."""
        for corpus in self.corpora:
            path = corpus.tokenizer_path()
            if path is not None:
                return Tokenizer(path)
        raise ConfigError(f"{self.folders[0]}: no manifest names a tokenizer; ask by ids, or write one into the manifest")

    @cached_property
    def unigrams(self) -> np.ndarray:
        """int64 (vocab_size,): how often each id stands in training documents of all indexes."""
        return np.sum([map_array(f / "unigrams.idx", "<i8", (self.vocab_size,)) for f in self.folders], axis=0)

    @property
    def n_tokens(self) -> int:
        """Of training documents."""
        return sum(part.record.train for part in self.parts)

    def file(self, place: Place) -> ShardFile:
        """The token file of a place."""
        return self.corpora[place.corpus].files[place.file]

    def find(self, ids: Sequence[int] | np.ndarray, split: str = "train") -> Ranges:
        """Where these tokens stand one after the other, within documents."""
        ranges = np.zeros((len(self.parts), 2), np.int64)
        for p, part in enumerate(self.parts):
            if len(part.sa[split]):
                ranks = self._ranks[part.corpus]
                ranges[p] = find_range(part.sa[split], part.tokens, ranks, part.ends, self._query(ids, ranks))
        return Ranges(split, ranges)

    def count(self, ids: Sequence[int] | np.ndarray, split: str = "train") -> int:
        """Occurrences of these tokens."""
        return self.find(ids, split).count

    def longest(self, ids: Sequence[int] | np.ndarray, split: str = "train") -> np.ndarray:
        """int32 (T,): how many tokens from each position on stand one after the other in a document."""
        out = np.zeros(len(ids), np.int32)
        for part in self.parts:
            if len(part.sa[split]):
                ranks = self._ranks[part.corpus]
                longest_prefixes(part.sa[split], part.tokens, ranks, part.ends, self._query(ids, ranks), out)
        return out

    def places(self, ranges: Ranges, limit: int | None = None, seed: int = 0) -> list[Place]:
        """Occurrences: all of them, or `limit` drawn by `seed` without repeats."""
        sizes = ranges.ranges_P2[:, 1] - ranges.ranges_P2[:, 0]
        ends, total = np.cumsum(sizes), int(sizes.sum())
        if limit is not None and limit < total:
            chosen = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
        else:
            chosen = np.arange(total)
        found = []
        for number in chosen.tolist():
            p = int(np.searchsorted(ends, number, side="right"))
            part = self.parts[p]
            at = int(ranges.ranges_P2[p, 1]) - (int(ends[p]) - number)
            found.append(Place(part.corpus, part.record.file, part.record.start + int(part.sa[ranges.split][at])))
        return found

    @staticmethod
    def _query(ids: Sequence[int] | np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Ranks of ids; 0 for those beyond the vocabulary."""
        array = np.asarray(ids, np.int64)
        known = (array >= 0) & (array < len(ranks))
        return np.where(known, ranks[np.where(known, array, 0)], 0).astype(np.uint32)
