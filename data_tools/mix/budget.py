"""Which documents a sample holds: those whose keys lie below a threshold.

A key is a hash of seed, source and id, and so of nothing that depends on files or processes; a budget sets the threshold to the
last document that still fits.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_tools.mix.config import MixConfig, SourceConfig, WhenSmall, total_of
from data_tools.mix.plan import Threshold
from olmo_train.errors import ShardError

BINS = 2**16
"""Of the first 16 bits of keys: one of them is looked at closely, so memory holds 1/65,536 of the documents."""
BLOCK_ROWS = 2**18
ALL = 2**64


def key_of(seed: int, source: str, document_id: str) -> int:
    """64 bits, as good as random."""
    return xxhash.xxh3_64_intdigest(f"{source}\0{document_id}".encode("utf-8", "surrogatepass"), seed % ALL)


class KeyWriter:
    """Writes the key and size of every document that passed the filters: uint64 (documents, 3): key, bytes, tokens."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close
        self._rows = array("Q")

    def write(self, key: int, size: int, tokens: int) -> None:
        """Of the next document."""
        self._rows.extend((key, size, tokens))
        if len(self._rows) >= 3 * BLOCK_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._rows.tobytes())
        self._rows = array("Q")

    def close(self) -> None:
        """Everything is in the file."""
        self._flush()
        self._file.close()


def read_keys(paths: list[Path], unit: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(keys, sizes in `unit`: documents, bytes or tokens), block by block; both uint64."""
    for path in paths:
        with open(path, "rb") as file:
            while len(rows := np.fromfile(file, np.uint64, 3 * BLOCK_ROWS)):
                table = rows.reshape(-1, 3)
                size = np.ones(len(table), np.uint64) if unit == "documents" else table[:, 1 if unit == "bytes" else 2]
                yield table[:, 0], size


def find_threshold(paths: list[Path], unit: str, budget: int) -> tuple[Threshold, int]:
    """The most documents, in the order of their keys, that are not more than `budget` in sum; those of one key stay together.

    After all of them once, they begin again, as often as it takes. Returns the threshold and the size of all documents once.
    """
    shift = np.uint64(64 - BINS.bit_length() + 1)
    histogram = np.zeros(BINS, np.float64)  # sums of whole numbers below 2^53 are exact
    for keys, sizes in read_keys(paths, unit):
        histogram += np.bincount((keys >> shift).astype(np.int64), sizes.astype(np.float64), BINS)
    total = int(histogram.sum())
    if total == 0:
        return Threshold(1, 0), 0
    passes, room = divmod(budget, total)
    ends = np.cumsum(histogram)
    bin_number = int(np.searchsorted(ends, room, "right"))  # the first that does not fit whole
    before = int(ends[bin_number - 1]) if bin_number else 0
    rows = [(k[hit], s[hit]) for k, s in read_keys(paths, unit) if (hit := (k >> shift) == bin_number).any()]
    rest = _rest_of_bin(np.concatenate([k for k, _ in rows]), np.concatenate([s for _, s in rows]), room - before)
    return Threshold(passes, rest), total


def _rest_of_bin(keys: np.ndarray, sizes: np.ndarray, room: int) -> int:
    """The first key of a bin that does not fit any more."""
    order = np.argsort(keys, kind="stable")
    keys, ends = keys[order], np.cumsum(sizes[order])
    fits = int(np.searchsorted(ends, room, "right"))
    return int(keys[fits])


def size_in(unit: str, size: float) -> tuple[str, int]:
    """Column of the keys, and how much of it, for a unit of the config."""
    return ("bytes", round(size * 1e6)) if unit == "mb" else (unit, int(size))


def threshold_of(config: MixConfig, name: str, source: SourceConfig, repeat: Threshold, paths: list[Path]) -> Threshold:
    """How often a source's documents are taken, after all its limits.

    Raises:
        ShardError: it has less than its weight asks for, and must not be repeated so often.
    """
    found = repeat
    total = total_of(config)
    if total is not None:
        shares = sum(each.weight or 0.0 for each in config.sources.values())
        unit, budget = size_in(total[0], total[1] * (source.weight or 0.0) / shares)
        found, there = find_threshold(paths, unit, budget)
        needed = budget / there if there else float("inf")
        most = config.max_repeat if config.when_small == WhenSmall.UPSAMPLE else 1.0
        if needed > most:
            raise ShardError(_too_small(config, name, (unit, there, budget), needed))
    for unit in ("documents", "mb", "tokens"):
        size = getattr(source, f"max_{unit}")
        if size is not None:
            limit, there = find_threshold(paths, *size_in(unit, size))
            if there:
                found = min(found, limit, key=lambda t: (t.passes, t.rest))
    return found


def _too_small(config: MixConfig, name: str, sizes: tuple[str, int, int], needed: float) -> str:
    unit, there, budget = sizes
    told = f"sources.{name}: has {there:,} {unit} after filters, but its weight asks for {budget:,}, {needed:.2f} times as much"
    if config.when_small == WhenSmall.ERROR:
        return f"{told}; give when_small=upsample, which repeats its documents, a smaller total, or another weight"
    return f"{told}, more than max_repeat={config.max_repeat}; raise it, or give a smaller total or another weight"


def copies_of(threshold: Threshold, key: int) -> int:
    """How often a document is written; 0: it is not in the sample."""
    return threshold.passes + (key < threshold.rest)


def facts_of(threshold: Threshold, key: int) -> dict[str, Any]:
    """What is told of a document that is not in the sample."""
    return {"repeat": threshold.repeat, "key": key / ALL}
