"""A Bloom filter on disk, in parts by ranges of keys: what earlier corpora hold, in 3.6 bytes a paragraph at an error of 1e-6.

<filter>/filter.json       Header; written last
<filter>/00000.bits ...    the bits of one range of keys each, at most MOST_BITS

A filter is written once, by the run that finds its paragraphs, and only read by later ones: a run that is repeated, or killed and
begun again, looks into the same filters and finds the same.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from data_tools.dedupe.config import By, DedupeConfig, ParagraphConfig
from olmo_train.errors import ShardError
from olmo_train.files import write_atomic

VERSION = 1
"""Of keys (xxh3-128 of the UTF-8 of a paragraph) and of the bits they set."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: brings the lower bits of a key into the upper ones, which the keys of one part share."""
BATCH = 2**18
"""Keys at once."""
MOST_BITS = 2**25
"""Of a part: 4 MiB (32 while it is made), whatever memory_mb is, so that the filter does not depend on it."""


@dataclass(frozen=True)
class Shape:
    """Of a filter."""

    part_bits: int
    """log2 of the number of parts."""
    size: int
    """Bits of a part."""
    hashes: int

    @classmethod
    def of(cls, expected: int, rate: float) -> "Shape":
        """For so many paragraphs, at most this share of others is taken for held.

        Source: m = -k n / ln(1 - p^(1/k)), Bloom (1970); parts get four standard deviations more than their share.
        """
        hashes = max(1, round(-math.log2(rate)))
        part_bits = 0
        while True:
            mean = expected / 2**part_bits
            n = mean + (4 * math.sqrt(mean) if part_bits else 0)
            size = max(64, -(-math.ceil(-hashes * n / math.log1p(-(rate ** (1 / hashes)))) // 64) * 64)
            if size <= MOST_BITS:
                return cls(part_bits, size, hashes)
            part_bits += 1


@dataclass(frozen=True)
class Header:
    """What filter.json says."""

    shape: Shape
    separator: str
    min_words: int
    expected: int
    false_positive_rate: float
    paragraphs: int
    """That it holds."""
    documents: dict[str, int] = field(default_factory=dict)
    """Files (absolute paths) they are from, with their sizes."""
    version: int = VERSION


def write_header(folder: Path, header: Header) -> None:
    """The last thing of a filter."""
    write_atomic(folder / "filter.json", (json.dumps(asdict(header), indent=1) + "\n").encode())


class Filter:
    """Reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def header(self) -> Header:
        """Raises:
        ShardError: there is no filter, it is not finished, or of another version."""
        path = self.folder / "filter.json"
        try:
            values = json.loads(path.read_text())
            header = Header(**{**values, "shape": Shape(**values["shape"])})
        except FileNotFoundError:
            raise ShardError(
                f"{path} does not exist; give <dataset>/stages/dedupe-<name>/filter of a finished run with paragraph.exact=false"
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise ShardError(f"{path}: cannot be read: {error}; run the stage that wrote it again") from None
        if header.version != VERSION:
            raise ShardError(f"{path}: version={header.version} is not {VERSION}; run the stage that wrote it again")
        return header

    def holds(self, hi: np.ndarray, lo: np.ndarray) -> np.ndarray:
        """Of keys that are sorted by `hi`: which it holds, or seems to.

        Raises:
            ShardError: a part is missing or has another size.
        """
        shape, found = self.header.shape, np.zeros(len(hi), np.bool_)
        shift = np.uint64(64 - shape.part_bits)
        part = hi >> shift if shape.part_bits else np.zeros(len(hi), np.uint64)
        numbers, begins = np.unique(part, return_index=True)
        for number, begin, end in zip(numbers.tolist(), begins, np.append(begins[1:], len(hi)), strict=True):
            found[begin:end] = _has_keys(self._read(int(number)), shape, hi[begin:end], lo[begin:end])
        return found

    def _read(self, number: int) -> np.ndarray:
        path, size = part_path(self.folder, number), self.header.shape.size // 8
        there = path.stat().st_size if path.exists() else 0
        if there != size:
            raise ShardError(f"{path}: {there:,} bytes, should be {size:,}; run the stage that wrote it again")
        return np.fromfile(path, np.uint8)


def _positions(shape: Shape, hi: np.ndarray, lo: np.ndarray) -> Iterator[np.ndarray]:
    """The bit that each hash names of each key, hash by hash.

    Source: Dillinger and Manolios, Bloom Filters in Probabilistic Verification (2004): enhanced double hashing.
    """
    value, step = lo.copy(), hi * SPREAD | np.uint64(1)
    for i in range(shape.hashes):
        yield ((value >> np.uint64(32)) * np.uint64(shape.size) >> np.uint64(32)).astype(np.int64)
        value += step
        step += np.uint64(i)


def _has_keys(bits: np.ndarray, shape: Shape, hi: np.ndarray, lo: np.ndarray) -> np.ndarray:
    """Whether all bits of each key are set."""
    found = np.ones(len(hi), np.bool_)
    for first in range(0, len(hi), BATCH):
        mine = slice(first, first + BATCH)
        for at in _positions(shape, hi[mine], lo[mine]):
            found[mine] &= (bits[at >> 3] >> (at & 7) & 1).astype(np.bool_)
            if not found[mine].any():
                break
    return found


class FilterPart:
    """One part that is being made."""

    def __init__(self, shape: Shape) -> None:
        self._shape, self._bits = shape, np.zeros(shape.size, np.bool_)
        self.paragraphs = 0

    def add(self, hi: np.ndarray, lo: np.ndarray) -> None:
        """Keys of its range."""
        for first in range(0, len(hi), BATCH):
            for at in _positions(self._shape, hi[first : first + BATCH], lo[first : first + BATCH]):
                self._bits[at] = True
        self.paragraphs += len(hi)

    def write(self, path: Path) -> None:
        """Usually a PartContext's output."""
        np.packbits(self._bits, bitorder="little").tofile(path)


def part_path(folder: Path, number: int) -> Path:
    """Of a part."""
    return folder / f"{number:05d}.bits"


def filter_problems(config: ParagraphConfig) -> list[str]:
    """What is wrong with the filters of earlier runs."""
    problems = []
    if config.seen and config.exact:
        problems.append(f"paragraph.seen={config.seen} needs paragraph.exact=false; give that, or leave seen out")
    for name in config.seen:
        try:
            header = Filter(Path(name)).header
        except ShardError as error:
            problems.append(f"paragraph.seen={name}: {error}")
            continue
        if (header.separator, header.min_words) != (config.separator, config.min_words):
            problems.append(
                f"paragraph.seen={name} was made with separator={header.separator!r}, min_words={header.min_words}, not "
                f"{config.separator!r}, {config.min_words}; give the same"
            )
    return problems


def filter_inputs(config: DedupeConfig) -> list[Path]:
    """Files of filters that a run reads."""
    return [Path(name, "filter.json") for name in config.paragraph.seen] if config.by == By.PARAGRAPH else []


def refuse_own(seen: Sequence[str], documents: Sequence[Path]) -> None:
    """Raises:
    ShardError: a filter holds the paragraphs of one of the documents: all of them would be duplicates of themselves."""
    for name in seen:
        held = Filter(Path(name)).header.documents
        for path in documents:
            if str(path.absolute()) in held:
                raise ShardError(
                    f"paragraph.seen={name} holds the paragraphs of {path}: all would be duplicates of themselves; leave out one "
                    "of the two"
                )
