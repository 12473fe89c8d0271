"""Find tokens in indexed shards: exact counts, every occurrence, and how much of a text stands there."""

import math
import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_tools.trace.answer import Place
from data_tools.trace.blocked import Blocked, block_documents
from data_tools.trace.cold import PAGE, Reads, Search, ask, page_runs, search_together
from data_tools.trace.index_folder import map_array
from data_tools.trace.parts import Index, Part, open_indexes
from data_tools.trace.search_kernels import find_ranges, longest_prefixes
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ConfigError, ShardError
from olmo_train.tokenizer import Tokenizer

Ids = Sequence[int] | np.ndarray
SEARCHES_FOR_THREADS = 5000
"""Fewer searches (a microsecond or two each) are over before threads are of use; on busy cores these wait for each other."""


@dataclass(frozen=True)
class Ranges:
    """Where some tokens stand: int64 (parts, 2), [first, last) in the suffix array of each part."""

    split: str
    ranges_P2: np.ndarray
    ids: np.ndarray
    """int64: the tokens."""
    n_blocked: int = 0
    """How many of these places are in blocked documents."""

    @property
    def count(self) -> int:
        """Occurrences, without those in blocked documents."""
        return int((self.ranges_P2[:, 1] - self.ranges_P2[:, 0]).sum()) - self.n_blocked


class Searcher:
    """Indexes opened together. Thread-safe.

    `split` is "train" or "heldout": an answer is about documents of one of them. A match never goes on from one document to the
    next; end-of-text and ids beyond the vocabulary match nothing. Every answer is as if the documents with the ids `blocked` did
    not exist.
    """

    def __init__(
        self, folders: Sequence[str | Path], verify: str = "spot", blocked: Collection[str] = (), cold: bool = False
    ) -> None:
        """Open indexes. `cold`: for indexes larger than memory; reads are asked for together, in the order of the disk (cold.py).

        Raises:
            ConfigError: no index is given, or they do not go together. ShardError: an index or its shards are damaged, or do
                not belong together.
        """
        self.indexes: list[Index] = open_indexes([Path(folder) for folder in folders], verify, cold)
        self.folders = [index.folder for index in self.indexes]
        self.corpora: list[Corpus] = [index.corpus for index in self.indexes]
        self.vocab_size = self.indexes[0].manifest.vocab_size
        self.parts: list[Part] = [part for index in self.indexes for part in index.parts]
        self.blocked: Blocked = block_documents(self.indexes, blocked)
        self.cold = cold
        self.reads = Reads()
        """What cold mode asked the disk for."""

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
        counts = [map_array(folder / "unigrams.idx", "<i8", (self.vocab_size,)) for folder in self.folders]
        total: np.ndarray = np.sum(counts, axis=0) - self.blocked.unigrams(self.vocab_size)
        return total

    @cached_property
    def unigram_log_probs(self) -> np.ndarray:
        """float64 (vocab_size,): natural logarithms of their shares; -inf for ids that do not stand there."""
        with np.errstate(divide="ignore"):
            logs: np.ndarray = np.log(self.unigrams) - math.log(max(self.n_tokens, 1))
        return logs

    @property
    def n_tokens(self) -> int:
        """Of training documents."""
        return sum(part.record.train for part in self.parts) - sum(part.record.train for part in self.blocked.parts)

    def file(self, place: Place) -> ShardFile:
        """The token file of a place."""
        return self.corpora[place.corpus].files[place.file]

    def find(self, ids: Ids, split: str = "train") -> Ranges:
        """Where these tokens stand one after the other, within documents.

        Raises:
            ConfigError: there are none.
        """
        return self.find_all([ids], split)[0]

    def find_all(self, queries: Sequence[Ids], split: str = "train") -> list[Ranges]:
        """`find` of each; together they cost less than one by one, most of all on a cold disk."""
        arrays = [np.asarray(ids, np.int64) for ids in queries]
        if any(len(ids) == 0 for ids in arrays):
            raise ConfigError("ids is empty: no tokens stand everywhere; give at least one id, or a text that is not empty")
        if not arrays:
            return []
        ends = np.cumsum([len(ids) for ids in arrays])
        spans_N2 = np.stack([np.append(0, ends[:-1]), ends], axis=1)
        whole = np.concatenate(arrays)
        self._bring_in(split, whole, spans_N2, ends_too=True)
        ranges_PN2 = self._ranges(self.parts, split, whole, spans_N2)
        blocked_BN2 = self._ranges(self.blocked.parts, split, whole, spans_N2)
        n_blocked = (blocked_BN2[..., 1] - blocked_BN2[..., 0]).sum(axis=0).tolist()
        return [Ranges(split, ranges_PN2[:, n], ids, n_blocked[n]) for n, ids in enumerate(arrays)]

    def count(self, ids: Ids, split: str = "train") -> int:
        """Occurrences of these tokens."""
        return self.find(ids, split).count

    def longest(self, ids: Ids, split: str = "train", starts: Ids | None = None) -> np.ndarray:
        """int32 (T,): how many tokens from each position on stand one after the other in a document; 0 where not in `starts`."""
        query = np.asarray(ids, np.int64)
        at = np.arange(len(query)) if starts is None else np.asarray(starts, np.int64)
        self._bring_in(split, query, np.stack([at, np.full(len(at), len(query))], axis=1), ends_too=False)
        found = self._longest(self.parts, split, query, at)
        if self.blocked.parts:
            self._shorten(found, split, query, at)
        out = np.zeros(len(query), np.int32)
        out[at] = found
        return out

    def places(self, ranges: Ranges, limit: int | None = None, seed: int = 0) -> list[Place]:
        """Occurrences: all of them, or `limit` drawn by `seed` without repeats; by part and order of suffixes.

        Raises:
            ShardError: the tokens do not stand at such a place: index or shards are damaged.
        """
        sizes = ranges.ranges_P2[:, 1] - ranges.ranges_P2[:, 0]
        total = int(sizes.sum())
        if limit is None or limit >= ranges.count:
            chosen = np.arange(total)
        else:
            # As many more as are blocked, so that `limit` remain; any of them with equal chance.
            chosen = np.random.default_rng(seed).choice(total, min(total, limit + ranges.n_blocked), replace=False)
        p_N = np.searchsorted(np.cumsum(sizes), chosen, side="right")
        at_N = ranges.ranges_P2[p_N, 1] - (np.cumsum(sizes)[p_N] - chosen)
        self._bring_in_places(ranges, p_N, at_N)
        found: list[tuple[int, Place]] = []
        for number, p, at in zip(chosen.tolist(), p_N.tolist(), at_N.tolist(), strict=True):
            place = self._place(p, ranges, at)
            if not self.blocked.holds(place):
                found.append((number, place))
        return [place for _, place in sorted(found[:limit], key=lambda pair: pair[0])]

    def _place(self, p: int, ranges: Ranges, at: int) -> Place:
        part = self.parts[p]
        offset = part.record.start + int(part.sa[ranges.split][at])
        place = Place(part.corpus, part.record.file, offset)
        file, end = self.file(place), offset + len(ranges.ids)
        if end > part.record.end or not np.array_equal(file.read(offset, end), ranges.ids):
            raise ShardError(
                f"{self.folders[part.corpus]}: part {part.record.number} says that the tokens looked for stand at token {offset} "
                f"of {file.path}, but others do: the index or the file was damaged; `olmo trace verify` says which"
            )
        return place

    def _ranges(self, parts: list[Part], split: str, ids: np.ndarray, spans_N2: np.ndarray) -> np.ndarray:
        """int64 (parts, N, 2)."""
        out = np.zeros((len(parts), len(spans_N2), 2), np.int64)

        def one(p: int) -> None:
            find_ranges(*parts[p].arrays(split), self._query(parts[p], ids), spans_N2, out[p])

        self._each(one, len(parts), 2 * len(spans_N2))
        return out

    def _longest(self, parts: list[Part], split: str, ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """int32 (len(starts),): over all parts."""
        out = np.zeros((len(parts), len(starts)), np.int32)

        def one(p: int) -> None:
            longest_prefixes(*parts[p].arrays(split), self._query(parts[p], ids), starts, out[p])

        self._each(one, len(parts), len(starts))
        return out.max(axis=0, initial=0)

    def _shorten(self, found: np.ndarray, split: str, ids: np.ndarray, starts: np.ndarray) -> None:
        """Lengths that stand in blocked documents alone become the longest that stand elsewhere too: counts fall with length."""
        blocked = self._longest(self.blocked.parts, split, ids, starts)
        which = np.flatnonzero((blocked >= found) & (found > 0))
        low, high = np.zeros(len(which), np.int64), found[which].astype(np.int64)
        while (open_ := np.flatnonzero(low < high)).size:
            length = (low[open_] + high[open_] + 1) // 2
            first = starts[which[open_]]
            spans_N2 = np.stack([first, first + length], axis=1)
            both = [self._ranges(parts, split, ids, spans_N2) for parts in (self.parts, self.blocked.parts)]
            counts = [(ranges[..., 1] - ranges[..., 0]).sum(axis=0) for ranges in both]
            stands = counts[0] > counts[1]
            low[open_] = np.where(stands, length, low[open_])
            high[open_] = np.where(stands, high[open_], length - 1)
        found[which] = low

    def _bring_in(self, split: str, ids: np.ndarray, spans_N2: np.ndarray, ends_too: bool) -> None:
        """In cold mode, what searches for ids[start:stop] will read."""
        if self.cold:
            search_together([Search(p, split, self._query(p, ids)) for p in self.parts], spans_N2, ends_too, self.reads)

    def _bring_in_places(self, ranges: Ranges, p_N: np.ndarray, at_N: np.ndarray) -> None:
        """In cold mode, the suffixes and then the tokens of places."""
        if self.cold:
            parts = [(self.parts[p], at_N[p_N == p]) for p in np.unique(p_N).tolist()]
            ask([(p.sa_paths[ranges.split], page_runs(4 * at, 4 * at + 4)) for p, at in parts], {}, self.reads)
            found = [Place(p.corpus, p.record.file, p.record.start + int(i)) for p, at in parts for i in p.sa[ranges.split][at]]
            self.bring_in(found, 0, len(ranges.ids))

    def bring_in(self, places: Sequence[Place], before: int, after: int) -> None:
        """In cold mode, ask the disk for the tokens from `before` places to `after` behind them, all at once; else nothing."""
        if not self.cold:
            return
        wanted = []
        for place in places:
            file = self.file(place)
            first, last = max(place.offset - before, 0), min(place.offset + after, file.entry.tokens)
            size = np.dtype(self.corpora[place.corpus].manifest.dtype).itemsize
            wanted.append((file.path, np.arange(first * size // PAGE, (last * size - 1) // PAGE + 1)))
        ask(wanted, {}, self.reads)

    def _query(self, part: Part, ids: np.ndarray) -> np.ndarray:
        return part.query(ids, self.corpora[part.corpus].manifest.eos_id)

    def _each(self, one: Callable[[int], None], n_parts: int, searches: int) -> None:
        """Do it for all parts: on threads, where there is enough for each (the kernels release the interpreter's lock)."""
        if n_parts > 1 and n_parts * searches > SEARCHES_FOR_THREADS and self._threads is not None:
            list(self._threads.map(one, range(n_parts)))
        else:
            for p in range(n_parts):
                one(p)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor | None:
        n = min(len(self.parts), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        return ThreadPoolExecutor(n, "trace") if n > 1 else None
