"""Bring the pages of many searches into memory at once, for indexes larger than memory and for slow disks.

A binary search reads a page, compares, and only then knows the next page: on a disk, each waits for the one before. Here all
searches of a question, in all parts, make their comparisons together. Before each, the pages that any of them will look at are
asked for, sorted by file and place, so that the disk can serve them in one sweep. The search proper finds them in memory; this
changes nothing about what it answers.

The table leads each search to STRIDE suffixes, which are a page or two: so a question takes a round for these and one for each of
the log2(STRIDE) comparisons, 9 in all, and about as many pages per search. More suffixes with the same first KEY tokens add two
rounds for each doubling.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.trace.index_folder import STRIDE
from data_tools.trace.parts import Part
from data_tools.trace.search_kernels import begin_all, narrow_all

PAGE = 4096
COMPARED = 16
"""Tokens of a suffix that are asked for beyond those known to be equal; longer matches fault a page in themselves."""


@dataclass
class Reads:
    """What was asked for since it was made."""

    rounds: int = 0
    """Times that something had to be waited for before the next pages were known."""
    pages: int = 0
    """Different pages of a round, of PAGE bytes."""


@dataclass
class Search:
    """Searches in one part and split."""

    part: Part
    split: str
    query: np.ndarray
    at_N4: dict[bool, np.ndarray] = field(default_factory=dict)
    """Brackets, by whether they are for the ends of ranges."""

    @property
    def open_N4(self) -> np.ndarray:
        """Brackets of searches that have not ended."""
        at_N4 = np.concatenate(list(self.at_N4.values()))
        return at_N4[at_N4[:, 0] < at_N4[:, 1]]


def search_together(searches: list[Search], spans_N2: np.ndarray, ends_too: bool, reads: Reads) -> None:
    """Bring in all that searches for query[start:stop] of each part will read; `ends_too`: for both ends of the ranges."""
    for s in searches:
        for upper in (False, True) if ends_too else (False,):
            s.at_N4[upper] = np.zeros((len(spans_N2), 4), np.int64)
            begin_all(s.part.sa[s.split], s.part.top[s.split], s.query, spans_N2, upper, s.at_N4[upper])
    asked: dict[Path, np.ndarray] = {}
    while searches := [s for s in searches if len(s.open_N4)]:
        ask([(s.part.sa_paths[s.split], _suffix_pages(s.open_N4)) for s in searches], asked, reads)
        ask([(s.part.tokens_path, _token_pages(s)) for s in searches], asked, reads)
        for s in searches:
            for upper, at_N4 in s.at_N4.items():
                narrow_all(*s.part.arrays(s.split), s.query, spans_N2, upper, at_N4)


def _suffix_pages(at_N4: np.ndarray) -> np.ndarray:
    """Of the whole bracket, where it is small, else of its middle."""
    low, high = at_N4[:, 0], at_N4[:, 1]
    middle = (low + high) // 2
    is_small = high - low <= STRIDE
    first, last = np.where(is_small, low, middle), np.where(is_small, high - 1, middle)
    return page_runs(4 * first, 4 * last + 4)


def _token_pages(s: Search) -> np.ndarray:
    """Of the tokens that the next comparisons begin with."""
    at_N4, start = s.open_N4, s.part.record.start
    positions = start + s.part.sa[s.split][(at_N4[:, 0] + at_N4[:, 1]) // 2].astype(np.int64) + at_N4[:, 2:].min(axis=1)
    size = s.part.tokens.itemsize
    return page_runs(size * positions, size * np.minimum(positions + COMPARED, start + len(s.part.tokens)))


def page_runs(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Numbers of the pages that hold bytes [first, last), for each of many; of each at most its first and last."""
    return np.unique(np.concatenate([first // PAGE, np.maximum(last - 1, first) // PAGE]))


def ask(wanted: Iterable[tuple[Path, np.ndarray]], asked: dict[Path, np.ndarray], reads: Reads) -> None:
    """One round: ask the system for pages of files, in the order of the disk, but for those `asked` before, to which they go."""
    by_path: dict[Path, list[np.ndarray]] = {}
    for path, some in wanted:
        by_path.setdefault(path, []).append(some)
    total = 0
    for path in sorted(by_path):
        before = asked.get(path, np.zeros(0, np.int64))
        pages = np.setdiff1d(np.concatenate(by_path[path]), before)
        asked[path] = np.concatenate([before, pages])
        total += len(pages)
        _will_need(path, pages)
    reads.pages += total
    reads.rounds += total > 0


def _will_need(path: Path, pages: np.ndarray) -> None:
    """Start reading pages; where the system cannot be told so, read them."""
    if not len(pages):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for first, n in _runs(pages):
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, first * PAGE, n * PAGE, os.POSIX_FADV_WILLNEED)
            else:
                os.pread(descriptor, n * PAGE, first * PAGE)
    finally:
        os.close(descriptor)


def _runs(pages: np.ndarray) -> Iterable[tuple[int, int]]:
    """(first, number) of neighbours."""
    first = pages[np.append(True, np.diff(pages) != 1)]
    last = pages[np.append(np.diff(pages) != 1, True)]
    return zip(first.tolist(), (last - first + 1).tolist(), strict=True)
