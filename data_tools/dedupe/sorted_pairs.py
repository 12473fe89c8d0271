"""Tables of (key, value) pairs on disk, larger than memory: written as sorted runs, read by ranges of keys in bounded memory.

A file is runs of RUN pairs (the last may be shorter), each sorted by key: all keys (uint64) of a run, then all its values.
A table is any number of such files; a range of keys is a slice of each run, found by bisection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RUN = 2**19
"""Pairs of a run: 8 MiB."""
MOST = 2**64 - 1
BASE_MB = 220
"""What a process holds before it reads a pair: Python, numpy, numba, compiled kernels."""
PAIR_BYTES = 144
"""Held at once for each pair of a block: as read, sorted, grouped, and what is made of it."""


def pairs_in_memory(memory_mb: int) -> int:
    """Of a block."""
    return max(memory_mb - BASE_MB, 16) * 2**20 // PAIR_BYTES


class PairWriter:
    """Writes one file of a table. `path` is usually a PartContext's output."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._n = 0
        self.pairs = 0

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """More pairs, in any order; the arrays must not be changed afterwards."""
        while len(keys):
            room = RUN - self._n
            self._pending.append((keys[:room], values[:room]))
            self._n += len(keys[:room])
            keys, values = keys[room:], values[room:]
            if self._n == RUN:
                self._flush()

    def _flush(self) -> None:
        keys = np.concatenate([keys for keys, _ in self._pending])
        values = np.concatenate([values for _, values in self._pending])
        order = np.argsort(keys, kind="stable")
        keys[order].tofile(self._file)
        values[order].tofile(self._file)
        self.pairs += self._n
        self._pending, self._n = [], 0

    def close(self) -> None:
        """Everything is in the file."""
        if self._n:
            self._flush()
        self._file.close()


def _slices(files: Sequence[Path], first: int, last: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys, values) of the range [first, last] in each run, as they lie on disk."""
    for path in files:
        size = path.stat().st_size // 16
        if size == 0:
            continue
        whole = np.memmap(path, np.uint64, "r")
        for start in range(0, size, RUN):
            n = min(RUN, size - start)
            keys = whole[2 * start : 2 * start + n]
            low = int(np.searchsorted(keys, np.uint64(first), "left"))
            high = int(np.searchsorted(keys, np.uint64(last), "right"))
            if low < high:
                yield keys[low:high], whole[2 * start + n + low : 2 * start + n + high]


def count_pairs(files: Sequence[Path], first: int = 0, last: int = MOST) -> int:
    """Pairs whose key is in [first, last]."""
    if (first, last) == (0, MOST):
        return sum(path.stat().st_size for path in files) // 16
    return sum(len(keys) for keys, _ in _slices(files, first, last))


def read_pairs(files: Sequence[Path], first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys, values) of a range that fits into memory, sorted by key, then value."""
    slices = [(np.array(keys), np.array(values)) for keys, values in _slices(files, first, last)]
    if not slices:
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    keys, values = np.concatenate([keys for keys, _ in slices]), np.concatenate([values for _, values in slices])
    del slices
    order = np.lexsort((values, keys))
    return keys[order], values[order]


def unique_pairs(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once, sorted."""
    order = np.lexsort((values, keys))
    keys, values = keys[order], values[order]
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
    return keys[is_new], values[is_new]


@dataclass
class Block:
    """Pairs of some keys: all pairs of each key, unless one key alone has more than fit into memory."""

    keys: np.ndarray
    values: np.ndarray
    smallest: np.ndarray
    """Of each pair: the smallest value of its key."""
    sizes: np.ndarray
    """Of each pair: how many pairs its key has."""
    firsts: np.ndarray
    """Index of the first pair of each key; empty if the key began in a block before."""


def read_groups(files: Sequence[Path], span: tuple[int, int], most: int) -> Iterator[Block]:
    """All pairs whose keys are in span, [first, last], in blocks of at most about `most`, by key; of a key that has more, in the
    order of the files."""
    first, last = span
    n = count_pairs(files, first, last)
    if n == 0:
        return
    if n <= most:
        keys, values = read_pairs(files, first, last)
        firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        sizes = np.diff(np.append(firsts, n))
        yield Block(keys, values, np.repeat(values[firsts], sizes), np.repeat(sizes, sizes), firsts)
    elif first < last:
        middle = first + (last - first) // 2
        yield from read_groups(files, (first, middle), most)
        yield from read_groups(files, (middle + 1, last), most)
    else:
        smallest = min(values.min() for _, values in _slices(files, first, first))
        firsts = np.zeros(1, np.int64)
        for keys, values in _slices(files, first, first):
            for start in range(0, len(keys), most):
                some = np.array(keys[start : start + most])
                yield Block(
                    some, np.array(values[start : start + most]), np.full_like(some, smallest), np.full(len(some), n), firsts
                )
                firsts = firsts[:0]


def split_keys(files: Sequence[Path], most: int) -> list[tuple[int, int]]:
    """Ranges [first, last] that cover all keys, of at most about `most` pairs each and of like size; none if there is no pair.

    They follow from the table and `most` alone, so that all machines find the same.
    """
    total = count_pairs(files)
    n = max(min(8, total // 2**17), -(-5 * total // (4 * most)), 1)
    if total == 0 or n == 1:
        return [(0, MOST)] if total else []
    stride = max(1, min(RUN // 8, total // (64 * n)))
    sample = np.sort(np.concatenate([keys[stride // 2 :: stride] for keys, _ in _slices(files, 0, MOST)]))
    ends = np.unique(sample[(np.arange(1, n) * len(sample)) // n]).tolist()
    starts = [0, *(end + 1 for end in ends if end < MOST)]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [MOST], strict=True))
