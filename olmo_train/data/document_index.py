"""Where each document stands in a token file: built once from Dolma's `.csv.gz`, then read by binary search.

For a token file the index is four small arrays (NumPy's format) under one prefix, memory-mapped; nothing proportional to the
corpus is held in memory. They are not called .npy, so that no glob takes them for tokens:

    .starts.idx    uint64 (documents + 1,): token offset of each document; the last entry is the length of the file
    .ids.idx       uint64 (2, documents): hashes of the document ids, sorted, and their ordinals
    .heldout.idx   int64 (gaps, 3): runs of held-out documents: start, end, held-out tokens before the run
    .blocks.idx    uint64 (blocks + 1,): byte offset of each block of ROWS_PER_BLOCK rows in the rows file

The rows file is Dolma's format (`start,end,id,src,loc`, no header, gzip) written as one gzip member per block: every reader of
Dolma's can read it, and ours can seek in it.
"""

import bisect
import csv
import gzip
import hashlib
import io
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from olmo_train.errors import ShardError

ROWS_PER_BLOCK = 1024
SUFFIXES = (".starts.idx", ".ids.idx", ".heldout.idx", ".blocks.idx")


@dataclass(frozen=True)
class DocumentRow:
    """One document of a token file; `start` and `end` are token offsets, end-of-text token included."""

    start: int
    end: int
    id: str
    src: str
    loc: int
    """1-based line in `src`."""


@dataclass(frozen=True)
class IndexCounts:
    """What a manifest records of an index."""

    documents: int
    heldout_documents: int
    heldout_tokens: int


def id_hash(document_id: str) -> int:
    """64 bits of BLAKE2b of the id: decides the held-out split and finds a document by its id."""
    return int.from_bytes(hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_heldout(document_id: str, frac: float) -> bool:
    """A document is held out by its id alone: the same in every mixture, every order and every re-sharding."""
    return id_hash(document_id) < int(frac * 2**64)


def read_rows(path: Path) -> Iterator[DocumentRow]:
    """Rows of a Dolma `.csv.gz` in order.

    Raises:
        ShardError: the file is missing, cut short, or a row is not `start,end,id,src,loc`; names the row.
    """
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                try:
                    start, end, document_id, src, loc = row
                    yield DocumentRow(int(start), int(end), document_id, src, int(loc))
                except ValueError:
                    raise ShardError(
                        f"{path}: row {number} is {row!r}, must be start,end,id,src,loc; write the sidecar again"
                    ) from None
    except FileNotFoundError:
        raise ShardError(
            f"{path} is missing: the sidecar of document spans must stand beside its token file; copy it from "
            "where the shards came, "
            "or infer it from the end-of-text token with `olmo data manifest infer_documents=true`"
        ) from None
    except (EOFError, OSError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise ShardError(f"{path}: damaged after row {number}: {error}; copy it again") from error


def write_index(prefix: Path, rows_path: Path, rows: Iterable[DocumentRow], n_tokens: int, heldout_frac: float) -> IndexCounts:
    """Write the index files of one token file of `n_tokens` and its seekable rows file.

    Raises:
        ShardError: documents do not cover the file one after the other; names row and token offset.
    """
    starts, ids, blocks = array("Q", [0]), array("Q"), [0]  # eight bytes per document, not a hundred
    gaps: list[list[int]] = []
    heldout_documents = heldout_tokens = 0
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with open(rows_path, "wb") as out:
        block: list[DocumentRow] = []
        for ordinal, row in enumerate(rows):
            if row.start != starts[-1] or row.end < row.start:
                raise ShardError(
                    f"{rows_path}: document {ordinal} ({row.id!r}) spans tokens [{row.start}, {row.end}), must "
                    f"start at {starts[-1]}, "
                    "where the one before ends; the sidecar belongs to another file"
                )
            starts.append(row.end)
            ids.append(id_hash(row.id))
            if ids[-1] < int(heldout_frac * 2**64):
                if gaps and gaps[-1][1] == row.start:
                    gaps[-1][1] = row.end
                elif row.end > row.start:
                    gaps.append([row.start, row.end, heldout_tokens])
                heldout_documents += 1
                heldout_tokens += row.end - row.start
            block.append(row)
            if len(block) == ROWS_PER_BLOCK:
                blocks.append(_write_block(out, block))
                block = []
        if block or len(blocks) == 1:
            blocks.append(_write_block(out, block))
        out.flush()
        os.fsync(out.fileno())
    if starts[-1] != n_tokens:
        raise ShardError(
            f"{rows_path}: documents end at token {starts[-1]}, the token file holds {n_tokens}: "
            "the file is truncated, or its dtype is not the one given"
        )
    hashes = np.array(ids, np.uint64)
    order = np.argsort(hashes, kind="stable")
    arrays = (
        np.array(starts, np.uint64),
        np.stack([hashes[order], order.astype(np.uint64)]),
        np.array(gaps, np.int64).reshape(-1, 3),
        np.array(blocks, np.uint64),
    )
    for suffix, values in zip(SUFFIXES, arrays, strict=True):
        with open(_with(prefix, suffix), "wb") as file:
            np.save(file, values)
    return IndexCounts(len(ids), heldout_documents, heldout_tokens)


def _write_block(out: io.BufferedWriter, rows: list[DocumentRow]) -> int:
    """Append one gzip member; return the offset after it. The time stamp is 0, so that equal rows are equal bytes."""
    text = io.StringIO()
    # csv's own end of row, \r\n, as in Dolma's files: with \n it would not quote an id that holds \r.
    csv.writer(text).writerows((r.start, r.end, r.id, r.src, r.loc) for r in rows)
    out.write(gzip.compress(text.getvalue().encode("utf-8"), mtime=0))
    return out.tell()


def _with(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


class RowBlock:
    """Rows of ROWS_PER_BLOCK documents; a row is parsed when it is asked for."""

    def __init__(self, path: Path, number: int, text: str) -> None:
        self.path, self.number, self.text = path, number, text

    @cached_property
    def _lines(self) -> list[str] | list[list[str]]:
        # Without a quotation mark no field holds an end of line, and splitting takes a sixth of the time of csv's reader.
        return list(csv.reader(io.StringIO(self.text, newline=""))) if '"' in self.text else self.text.split("\r\n")

    def row(self, ordinal: int) -> DocumentRow:
        """Of a document, by its ordinal in the file."""
        try:
            line = self._lines[ordinal % ROWS_PER_BLOCK]
            start, end, document_id, src, loc = line.split(",") if isinstance(line, str) else line
            return DocumentRow(int(start), int(end), document_id, src, int(loc))
        except (ValueError, IndexError, csv.Error) as error:
            raise ShardError(_block_problem(self.path, self.number, error)) from error


def _block_problem(path: Path, block: int, error: Exception) -> str:
    return f"{path}: block {block} (documents from {block * ROWS_PER_BLOCK}) cannot be read: {error}"


class DocumentIndex:
    """Reader of the index of one token file. Opening costs nothing; lookups touch a few pages."""

    def __init__(self, prefix: Path, rows_path: Path) -> None:
        self.prefix, self.rows_path = prefix, rows_path

    def check_present(self) -> None:
        """Raises:
        ShardError: a file of the index, or the rows file, is missing."""
        for path in (*map(self.path, SUFFIXES), self.rows_path):
            if not path.is_file():
                raise ShardError(f"{path} is missing: part of the document index; write it again with `olmo data manifest`")

    @cached_property
    def starts(self) -> np.ndarray:
        """uint64 (documents + 1,): token offsets."""
        return self.load(".starts.idx")

    @cached_property
    def _gaps(self) -> np.ndarray:
        return self.load(".heldout.idx")

    def path(self, suffix: str) -> Path:
        """One of the index files."""
        return _with(self.prefix, suffix)

    def load(self, suffix: str) -> np.ndarray:
        """One of the index files, memory-mapped.

        Raises:
            ShardError: it cannot be read.
        """
        path = self.path(suffix)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            raise ShardError(
                f"{path}: document index cannot be read: {error}; write it again with `olmo data manifest`"
            ) from error

    def documents_between(self, start: int, end: int) -> range:
        """Ordinals of the documents that have a token in [start, end)."""
        first = int(np.searchsorted(self.starts, np.uint64(start), side="right")) - 1
        last = int(np.searchsorted(self.starts, np.uint64(end), side="left"))
        return range(max(first, 0), last)

    def span(self, ordinal: int) -> tuple[int, int]:
        """Token offsets [start, end) of a document."""
        return int(self.starts[ordinal]), int(self.starts[ordinal + 1])

    def row(self, ordinal: int) -> DocumentRow:
        """Everything known of a document; reads one block of the rows file."""
        return self.checked_row(self.read_block(ordinal // ROWS_PER_BLOCK), ordinal)

    def checked_row(self, block: "RowBlock", ordinal: int) -> DocumentRow:
        """Of a document, from its block.

        Raises:
            ShardError: the rows are those of another file, or one of both is damaged: the id would be of another document.
        """
        row, (start, end) = block.row(ordinal), self.span(ordinal)
        if (row.start, row.end) != (start, end):
            raise ShardError(
                f"{self.rows_path}: document {ordinal} ({row.id!r}) spans tokens [{row.start}, {row.end}), "
                f"{self.path('.starts.idx')} says [{start}, {end}): one of them was damaged or exchanged; copy both again"
            )
        return row

    def read_block(self, block: int) -> "RowBlock":
        """A block of the rows file, for whoever asks for many rows: the rows of documents block * ROWS_PER_BLOCK and on.

        Raises:
            ShardError: it is damaged.
        """
        blocks = self.load(".blocks.idx")
        try:
            with open(self.rows_path, "rb") as file:
                first, last = int(blocks[block]), int(blocks[block + 1])
                if not first < last <= os.fstat(file.fileno()).st_size:  # else gigabytes might be allocated for nothing
                    raise ValueError(f"{self.path('.blocks.idx')} says that it is bytes [{first}, {last})")
                file.seek(first)
                text = gzip.decompress(file.read(last - first)).decode("utf-8")
        except (OSError, EOFError, ValueError, IndexError, OverflowError, zlib.error) as error:
            raise ShardError(_block_problem(self.rows_path, block, error)) from error
        return RowBlock(self.rows_path, block, text)

    def find(self, document_id: str) -> list[int]:
        """Ordinals of the documents with this id (ids should be unique; published corpora have repeats)."""
        ids, key = self.load(".ids.idx"), np.uint64(id_hash(document_id))
        at = int(np.searchsorted(ids[0], key))  # contiguous, so that numpy does not copy it
        ordinals = []
        while at < ids.shape[1] and ids[0, at] == key:
            ordinals.append(int(ids[1, at]))
            at += 1
        return [n for n in ordinals if self.row(n).id == document_id]

    # The two splits are streams of their own: position p of the train stream is the p-th token that is not held out.

    def train_pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """File offsets [a, b) of positions [start, end) of the train stream."""
        pieces = []
        gap = bisect.bisect_right(range(len(self._gaps)), start, key=lambda i: int(self._gaps[i, 0] - self._gaps[i, 2]))
        while start < end:
            shift = self._heldout_before(gap)
            stop = end if gap == len(self._gaps) else min(end, int(self._gaps[gap, 0]) - shift)
            if stop > start:
                pieces.append((start + shift, stop + shift))
            start, gap = stop, gap + 1
        return pieces

    def heldout_pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """File offsets [a, b) of positions [start, end) of the held-out stream."""
        pieces = []
        gap = bisect.bisect_right(range(len(self._gaps)), start, key=lambda i: int(self._gaps[i, 2])) - 1
        while start < end and 0 <= gap < len(self._gaps):
            first, last, before = (int(v) for v in self._gaps[gap])
            stop = min(end, before + last - first)
            pieces.append((first + start - before, first + stop - before))
            start, gap = stop, gap + 1
        return pieces

    def train_position(self, offset: int) -> int | None:
        """Position in the train stream of the token at a file offset; None if its document is held out."""
        gap = bisect.bisect_right(range(len(self._gaps)), offset, key=lambda i: int(self._gaps[i, 0]))
        if gap and offset < int(self._gaps[gap - 1, 1]):
            return None
        return offset - self._heldout_before(gap)

    def _heldout_before(self, gap: int) -> int:
        """Held-out tokens in all runs before run number `gap`."""
        if gap == 0:
            return 0
        start, end, before = (int(v) for v in self._gaps[gap - 1])
        return before + end - start
