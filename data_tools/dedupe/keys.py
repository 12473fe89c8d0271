"""Equal keys in a corpus larger than memory: sorted runs per file, compared range by range, and read back file by file.

An *item* (a document or a paragraph) has a key of 128 bits and a *place*, smaller for what is kept: 8 bits for the priority of
its source, 24 for the number of its file, 32 for its ordinal in that file. Three steps, each of independent parts:

1. per file, KeyWriter: items in runs of RUN; of equal keys in a run only the one of the smallest place goes on, so that not even
   one key that stands everywhere makes a range large. <file>.keys: the runs, and what did not go on, and for whom
2. per range of keys, compare: all runs' keys of the range, sorted. <range>.removed, sorted by file and ordinal
3. per file, read_removed: both together, run by run

The number of ranges follows from memory_mb; what comes out does not depend on it, nor on who did which part.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

RUN = 2**18
"""Items sorted together: 6 MB, which stays in the processor's cache."""
FILE_SHIFT, PRIORITY_SHIFT = np.uint64(32), np.uint64(56)
MOST_FILES, MOST_PRIORITIES = 2**24, 255
PLACE = np.uint64(2**56 - 1)
"""File and ordinal."""
ORDINAL = np.uint64(2**32 - 1)
ITEM_BYTES = 88
"""Memory of one item while its range is compared (measured)."""
BASE_MB = 120
"""Memory of a process beside that."""


@dataclass(frozen=True)
class Keys:
    """Columns, uint64 (items,)."""

    hi: np.ndarray
    lo: np.ndarray
    place: np.ndarray


class KeyWriter:
    """Writes the runs of one file. Ordinals ascend."""

    def __init__(self, path: Path, file: int) -> None:
        self._out: BinaryIO = open(path, "wb")  # noqa: SIM115 - closed by close
        self.hi, self.lo, self.place = (np.zeros(RUN, np.uint64) for _ in range(3))
        self.items = 0
        """In the run that is being filled."""
        self.written = 0
        """Keys that go on."""
        self._file = np.uint64(file) << FILE_SHIFT

    def add(self, key: tuple[int, int], priority: int, ordinal: int) -> None:
        """One item."""
        at = self.items
        self.hi[at], self.lo[at] = key
        self.place[at] = priority << 56 | ordinal
        self.items += 1
        if self.items == RUN:
            self.flush()

    def add_many(self, keys: np.ndarray, priority: int, ordinals: np.ndarray) -> None:
        """Several: uint64 (n, 2)."""
        while len(keys):
            n = min(RUN - self.items, len(keys))
            mine = slice(self.items, self.items + n)
            self.hi[mine], self.lo[mine] = keys[:n].T
            self.place[mine] = ordinals[:n] | np.uint64(priority << 56)
            self.items += n
            keys, ordinals = keys[n:], ordinals[n:]
            if self.items == RUN:
                self.flush()

    def flush(self) -> None:
        """End the run."""
        n = self.items
        if not n:
            return
        place = self.place[:n]
        place |= self._file
        end = int(place[n - 1] & ORDINAL) + 1
        found = find_equal(Keys(self.hi[:n], self.lo[:n], place))
        header = np.array([len(found.first.hi), len(found.removed), end], np.uint64)
        columns = (found.first.hi, found.first.lo, found.first.place, found.removed, found.kept)
        for column in (header, *columns):
            self._out.write(np.ascontiguousarray(column).data)
        self.written += len(found.first.hi)
        self.items = 0

    def close(self) -> None:
        """Everything is written."""
        self.flush()
        self._out.close()


@dataclass(frozen=True)
class Equal:
    """Of some items: the one of the smallest place of each key, sorted by `hi`; and the others."""

    first: Keys
    removed: np.ndarray
    """File and ordinal, in no order."""
    kept: np.ndarray
    """Of the first of its key."""


def find_equal(keys: Keys) -> Equal:
    """Compare all 128 bits of all keys."""
    order = np.argsort(keys.hi)
    hi, lo = keys.hi[order], keys.lo[order]
    is_first = np.ones(len(hi), bool)
    is_first[1:] = hi[1:] != hi[:-1]
    if (~is_first[1:] & (lo[1:] != lo[:-1])).any():  # 64 bits are equal, 128 are not
        order = np.lexsort((keys.lo, keys.hi))
        hi, lo = keys.hi[order], keys.lo[order]
        is_first[1:] = (hi[1:] != hi[:-1]) | (lo[1:] != lo[:-1])
    begins = np.flatnonzero(is_first)
    place = keys.place[order]
    smallest = np.minimum.reduceat(place, begins) if len(place) else place
    kept = np.repeat(smallest, np.diff(begins, append=len(place)))
    others = place != kept
    return Equal(Keys(hi[begins], lo[begins], smallest), place[others] & PLACE, kept[others] & PLACE)


@dataclass(frozen=True)
class Run:
    """Where it lies in a file, in numbers of 8 bytes."""

    end: int
    """Ordinal after its last item."""
    at: int
    firsts: int
    others: int


def read_runs(path: Path) -> Iterator[Run]:
    """Of one file, in order."""
    at, size = 0, path.stat().st_size // 8
    while at < size:
        firsts, others, end = read_numbers(path, at, 3).tolist()
        yield Run(end, at + 3, firsts, others)
        at += 3 + 3 * firsts + 2 * others


def read_numbers(path: Path, first: int, count: int) -> np.ndarray:
    """uint64 of a file. Read, not mapped: what is mapped counts as memory of the process as long as it is."""
    return np.fromfile(path, np.uint64, count, offset=8 * first)


def _search(path: Path, first: int, count: int, values: list[int]) -> list[int]:
    """Where `values` come into an ascending column of a file."""
    if not count:
        return [0] * len(values)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        column = np.frombuffer(data, np.uint64, count, 8 * first)
        found: list[int] = np.searchsorted(column, np.array(values, np.uint64)).tolist()
        del column
    return found


# ---- ranges ------------------------------------------------------------------------------------------------------------------


def range_bits(n_items: int, memory_mb: int) -> int:
    """log2 of the number of ranges that `n_items` are compared in."""
    room = max(memory_mb - BASE_MB, 25) * 1e6
    return max(0, int(np.ceil(np.log2(max(n_items, 1) * ITEM_BYTES / room))))


def read_range(paths: list[Path], number: int, bits: int) -> Keys:
    """The keys of every file whose highest `bits` bits are `number`."""
    pieces = [(path, run, *_bounds(path, run, number, bits)) for path in paths for run in read_runs(path)]
    total, at = sum(last - first for _, _, first, last in pieces), 0
    keys = Keys(*(np.empty(total, np.uint64) for _ in range(3)))
    for path, run, first, last in pieces:
        for i, column in enumerate((keys.hi, keys.lo, keys.place)):
            column[at : at + last - first] = read_numbers(path, run.at + i * run.firsts + first, last - first)
        at += last - first
    return keys


def _bounds(path: Path, run: Run, number: int, bits: int) -> tuple[int, int]:
    """Of a range in a run."""
    if not bits:
        return 0, run.firsts
    ends = [number << (64 - bits), *([(number + 1) << (64 - bits)] if number + 1 < 1 << bits else [])]
    first, last = [*_search(path, run.at, run.firsts, ends), run.firsts][:2]
    return first, last


def write_removed(path: Path, removed: np.ndarray, kept: np.ndarray) -> None:
    """Places that are removed, sorted by file and ordinal, then those kept for them."""
    order = np.argsort(removed)
    with open(path, "wb") as file:
        file.write(removed[order].data)
        file.write(kept[order].data)


# ---- back to files -----------------------------------------------------------------------------------------------------------


def read_removed(keys: Path, ranges: list[Path], file: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of one file, run by run: (ordinal after its last item, ordinals removed in ascending order, places kept for them)."""
    begin = file << 32
    for run in read_runs(keys):
        end, middle = file << 32 | run.end, run.at + 3 * run.firsts
        removed, kept = (np.concatenate(columns) for columns in zip(*(_slice(path, begin, end) for path in ranges), strict=True))
        order = np.argsort(removed)
        removed, kept = removed[order], kept[order]
        items = np.concatenate([read_numbers(keys, middle, run.others), removed])
        firsts = np.concatenate([_resolve(read_numbers(keys, middle + run.others, run.others), removed, kept), kept])
        order = np.argsort(items)
        yield run.end, items[order] & ORDINAL, firsts[order]
        begin = end


def _slice(path: Path, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """What write_removed wrote of the places in [begin, end)."""
    size = path.stat().st_size // 16
    first, last = _search(path, 0, size, [begin, end])
    return read_numbers(path, first, last - first), read_numbers(path, size + first, last - first)


def _resolve(firsts: np.ndarray, removed: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What is kept for the first of its key in a run: itself, or what it was removed for."""
    if not len(removed):
        return firsts
    at = np.minimum(np.searchsorted(removed, firsts), len(removed) - 1)
    return np.where(removed[at] == firsts, kept[at], firsts)
