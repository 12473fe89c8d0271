"""Runs of n tokens in training documents and how often each stands there at most, within a bound on memory."""

import numpy as np

from data_tools.trace.occurrences import blocked_spans
from data_tools.trace.parts import Part
from data_tools.trace.repeat_kernels import collect_runs, count_runs
from data_tools.trace.searcher import Searcher

NO_EOS = -1
BYTES_PER_RUN = 24
FEWEST_RUNS, FIRST_RUNS = 2**4, 2**16


class RunTable:
    """Counts by hash, an upper bound for every run, and the runs that have at least a given bound.

    Half of the memory is for the counts, half for the runs that are collected; one pass over the tokens makes the first, one each
    time of the second.
    """

    def __init__(self, searcher: Searcher, n_tokens: int, memory_mib: float) -> None:
        self.searcher, self.n_tokens = searcher, n_tokens
        half = int(memory_mib * 2**19)
        wanted = max(2, 2 * searcher.n_tokens)
        self.table = np.zeros(1 << min(max(half // 4, 2).bit_length() - 1, (wanted - 1).bit_length()), np.uint32)
        self.max_runs = 1 << (max(half // BYTES_PER_RUN, FEWEST_RUNS).bit_length() - 1)
        self.least_possible = 0
        """With a smaller bound there are more runs than memory has room for."""
        for part in searcher.parts:
            count_runs(*self._read(part), n_tokens, self.table)

    def value_of_rank(self, n: int) -> int:
        """The n-th largest count of a cell."""
        if n >= len(self.table):
            return 0
        return int(np.partition(self.table, len(self.table) - n)[len(self.table) - n])

    def collect(self, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hashes, bounds, places) of runs whose cells hold at least `least`, or, where there is no room, a larger number.

        places: int64 (runs, 2), part and position in it of one occurrence. `least_possible` says from which bound on they are
        all there. A bound here is the exact count unless hashes are equal.
        """
        least, size = max(least, self.least_possible), min(FIRST_RUNS, self.max_runs)
        while True:
            found = np.zeros(size, np.uint64), np.zeros(size, np.int64), np.zeros((size, 2), np.int64)
            if all(
                collect_runs(*self._read(p), self.n_tokens, self.table, least, found, n)
                for n, p in enumerate(self.searcher.parts)
            ):
                there = np.flatnonzero(found[1])
                return found[0][there], found[1][there], found[2][there]
            if size < self.max_runs:
                size = min(4 * size, self.max_runs)
            else:
                least += 1
                self.least_possible = least

    def _read(self, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """What the kernels take first: tokens, ends of documents, which are training documents and not blocked, end-of-text."""
        ends = document_ends(self.searcher, part)
        index = self.searcher.corpora[part.corpus].files[part.record.file].index
        starts = np.append(0, ends[:-1])
        is_read = np.ones(len(ends), np.bool_)
        runs = np.asarray(index.load(".heldout.idx"))[:, :2].T - part.record.start
        for first, last in (runs, blocked_spans(self.searcher, part) - part.record.start):
            is_read &= ~(np.searchsorted(first, starts, side="right") > np.searchsorted(last, starts, side="right"))
        eos = self.searcher.corpora[part.corpus].manifest.eos_id
        return part.tokens, ends, is_read, NO_EOS if eos is None else eos


def document_ends(searcher: Searcher, part: Part) -> np.ndarray:
    """int64: where the documents of a part end, in tokens from its beginning."""
    index, record = searcher.corpora[part.corpus].files[part.record.file].index, part.record
    documents = index.documents_between(record.start, record.end)
    return np.asarray(index.starts[documents.start + 1 : documents.stop + 1], np.int64) - record.start
