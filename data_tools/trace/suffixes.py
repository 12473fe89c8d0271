"""The suffix arrays of one part: tokens -> bytes of their codes -> pydivsufsort -> positions of tokens.

Tokens are read twice, a block at a time, and never held: once to count them, once to write their codes.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydivsufsort import divsufsort

from data_tools.trace.codes import MAX_CODE, make_codes
from data_tools.trace.index_folder import KEY, STRIDE, PartRange
from data_tools.trace.suffix_kernels import count, count_before, encode, put_runs, to_tokens
from olmo_train.data.manifest import BLOCK_BYTES
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ShardError

INT32_BYTES = 2**31 - 1
"""Longer strings are sorted with positions of 8 bytes instead of 4."""
CHUNK = 2**20
"""Suffixes that are copied, hashed and written at once."""


@dataclass(frozen=True)
class SortedPart:
    """Positions of tokens in the part, in the order of their suffixes; int32, int64 or uint32."""

    train: np.ndarray
    heldout: np.ndarray
    counts_V: np.ndarray
    """int64: how often each id stands in training documents."""


def memory_bound(n_tokens: int, n_documents: int, itemsize: int) -> int:
    """Bytes that `sort_part` and `leading_ranks` hold at most at once, every code taken to be of the longest kind.

    While sorting: per byte of codes itself, its position, and 3/16 to come back from bytes to tokens; per token one bit. While
    writing, codes are gone and tokens of `itemsize` bytes are mapped instead.
    """
    n_bytes = MAX_CODE * n_tokens + n_documents
    position = 4 if n_bytes <= INT32_BYTES else 8
    sorting = n_bytes + position * n_bytes + 3 * n_bytes // 16 + n_tokens // 8
    writing = position * n_bytes + itemsize * n_tokens + 32 * CHUNK
    return max(sorting, writing)


def part_ends(file: ShardFile, part: PartRange) -> np.ndarray:
    """uint64: token offsets in the file at which the part's documents end, memory-mapped."""
    documents = file.index.documents_between(part.start, part.end)
    return np.asarray(file.index.starts[documents.start + 1 : documents.stop + 1])


def heldout_bits(file: ShardFile, part: PartRange) -> np.ndarray:
    """Bits of the part's tokens that stand in held-out documents; empty if there is none."""
    runs = np.asarray(file.index.load(".heldout.idx"))[:, :2]
    runs = np.clip(runs[(runs[:, 1] > part.start) & (runs[:, 0] < part.end)], part.start, part.end)
    if not len(runs):
        return np.zeros(0, np.uint64)
    bits = np.zeros(-(-(part.end - part.start) // 64), np.uint64)
    put_runs(bits, runs, part.start)
    return bits


def checked_blocks(file: ShardFile, start: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, ids) of tokens [start, end), a block of the manifest at a time.

    Raises:
        ShardError: a block is not what the manifest says, or an id is beyond the vocabulary; names file and place.
    """
    size = BLOCK_BYTES // file.itemsize
    for number in range(start // size, -(-end // size)):
        if number < file.n_blocks:
            file.check_block(number)
        first = max(start, number * size)
        yield first, file.read(first, min(end, (number + 1) * size))


def sort_part(file: ShardFile, part: PartRange, rank_V: np.ndarray, wide: bool = False) -> SortedPart:
    """Sort the suffixes of a part; those that are equal to the end of their documents stand in an order of no meaning.

    `wide` sorts with positions of 8 bytes, as strings beyond INT32_BYTES are.

    Raises:
        ShardError: the shards are not what their manifest says, or change meanwhile.
    """
    ends, heldout = part_ends(file, part), heldout_bits(file, part)
    counts_2V, sums = np.zeros((2, len(rank_V)), np.int64), []
    for first, ids in checked_blocks(file, part.start, part.end):
        count(ids, first - part.start, heldout, counts_2V)
        sums.append(zlib.crc32(ids.data))
    code_V = make_codes(rank_V, counts_2V.sum(0))
    not_empty = int(ends[0] != part.start) + int((ends[1:] != ends[:-1]).sum())
    n_bytes = int(counts_2V.sum(0) @ (code_V >> 24).astype(np.int64)) + not_empty
    data, begins = np.empty(n_bytes + MAX_CODE - 1, np.uint8), np.zeros(n_bytes // 64 + 1, np.uint64)
    document = at = 0
    for expected, (first, ids) in zip(sums, checked_blocks(file, part.start, part.end), strict=True):
        if zlib.crc32(ids.data) != expected:
            raise ShardError(f"{file.path}: tokens from {first} on changed while they were read; let nobody write there")
        document, at = encode(ids, first, code_V, ends, document, data, at, begins)
    assert at == n_bytes, (at, n_bytes)
    order = divsufsort(data[:n_bytes], force64=wide)
    del data
    before = np.empty(len(begins), np.uint32)
    count_before(begins, before)
    n_train, n_heldout = (int(n) for n in counts_2V.sum(1))
    held = np.empty(n_heldout, np.uint32)
    to_tokens(order, begins, before, heldout, held)
    return SortedPart(order[:n_train], held, counts_2V[0])


def suffix_chunks(sa: np.ndarray) -> Iterator[np.ndarray]:
    """uint32 pieces of a suffix array, to be written one after the other."""
    for at in range(0, len(sa), CHUNK):
        yield sa[at : at + CHUNK].astype("<u4")


def leading_ranks(
    sa: np.ndarray, tokens: np.ndarray, ends: np.ndarray, rank_V: np.ndarray, dtype: np.dtype
) -> Iterator[np.ndarray]:
    """(n, KEY) pieces of `.top`: ranks of the first KEY tokens of every STRIDE-th suffix, 0 after the end of its document.

    tokens: of the part, indexable; ends: ends of its documents, from its beginning.
    """
    step = STRIDE * (CHUNK // STRIDE // KEY)
    for first in range(0, len(sa), step):
        positions = sa[first : first + step : STRIDE].astype(np.int64)
        limit = ends[np.searchsorted(ends, positions, side="right")]
        at = positions[:, None] + np.arange(KEY)
        ranks = rank_V[tokens[np.minimum(at, len(tokens) - 1)]]
        yield np.where(at < limit[:, None], ranks, 0).astype(dtype)
