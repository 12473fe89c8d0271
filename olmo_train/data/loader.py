"""Read the batches that `order.py` names: spans -> arrays of ids, labels and document numbers. Its only state is the step."""

import queue
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from olmo_train.config.data import DataConfig, RepetitionMaskConfig, SourceConfig
from olmo_train.data.describe import DescribeOptions, describe_shards
from olmo_train.data.manifest import manifest_path
from olmo_train.data.order import DataOrder, HeldoutStream, Piece, Source
from olmo_train.data.repetition import repeats
from olmo_train.data.shards import Corpus
from olmo_train.data.without import Columns, Without
from olmo_train.errors import ShardError

IGNORE = -100
"""Label of a position that is not predicted."""

MIN_OFFSETS = 64
"""Least length of the list of document offsets."""


@dataclass
class Rows:
    """Some rows of a batch.

    ids: int64 (B, T). labels: int64 (B, T), the next id of each position, IGNORE at the last one and in masked rows.
    documents: int32 (B, T), the number of the document within the row, or None. masked: bool (B,), rows left out of the loss.
    without: int64 (B, 2), of each row the tokens replaced by end-of-text and the targets left out with them (without.py); None
    where `data.without` says nothing.
    """

    ids: np.ndarray
    labels: np.ndarray
    documents: np.ndarray | None
    masked: np.ndarray
    without: np.ndarray | None = None

    @property
    def n_targets(self) -> int:
        """What the sum of losses is divided by: the positions that are predicted, and those that would be but for `without`."""
        left_out = 0 if self.without is None else int(self.without[:, 1].sum())
        return int((self.labels != IGNORE).sum()) + left_out

    def slice(self, start: int, end: int) -> "Rows":
        """Rows [start, end)."""
        documents = None if self.documents is None else self.documents[start:end]
        without = None if self.without is None else self.without[start:end]
        return Rows(self.ids[start:end], self.labels[start:end], documents, self.masked[start:end], without)

    def checksum(self, first_row: int) -> int:
        """A sum over rows that is the same however rows are shared out over ranks; kept in the ledger."""
        total = 0
        for i, row in enumerate(self.ids.astype("<u4")):
            total += zlib.crc32(row.tobytes()) * (2 * (first_row + i) + 1)
        return total % 2**62


def open_sources(config: DataConfig, folder: Path) -> list[Source]:
    """Open every source of the mixture. Published shards (`files`) are looked up in `folder`, where `prepare_sources` put them.

    Raises:
        ShardError: a manifest is missing or damaged, or does not hold the selected source.
    """
    sources = []
    for name, source in config.sources.items():
        corpus = Corpus(_manifest_folder(name, source, folder))
        files = tuple(f for f in corpus.files if source.select in (None, f.entry.source))
        if not files:
            have = ", ".join(corpus.manifest.sources)
            raise ShardError(f"data.sources.{name}.select={source.select} is not a source of {corpus.folder}; it has {have}")
        sources.append(Source(name, source.weight, files, corpus.manifest.fingerprint()))
    return sources


def prepare_sources(config: DataConfig, folder: Path, vocab_size: int) -> None:
    """Write manifests for the published shards that a config names by `files`. Call on one rank, before `open_sources`."""
    for name, source in config.sources.items():
        target = _manifest_folder(name, source, folder)
        if source.files is not None and not manifest_path(target).exists():
            options = DescribeOptions(source.dtype or "", vocab_size)
            describe_shards({name: source.files}, target, options)


def source_corpus(config: DataConfig, name: str, folder: Path) -> Corpus:
    """The corpus behind one source."""
    return Corpus(_manifest_folder(name, config.sources[name], folder))


def _manifest_folder(name: str, source: SourceConfig, folder: Path) -> Path:
    return Path(source.path) if source.path is not None else folder / name


class Loader:
    """This rank's rows of every step, read ahead in a background thread."""

    def __init__(self, order: DataOrder, config: DataConfig, rank: int, n_ranks: int) -> None:
        per_rank = order.rows // n_ranks
        self.order, self.config = order, config
        self.first_row, self.end_row = rank * per_rank, (rank + 1) * per_rank
        files = {source.name: source.files for source in order.sources}
        self._without = None if config.without is None else Without(files, config.without)

    def read(self, step: int) -> Rows:
        """This rank's rows of one step."""
        instances = self.order.batch(step, self.first_row, self.end_row)
        pieces = [instance.pieces for instance in instances]
        rows = read_rows(pieces, self.config.seq_len, self.config.document_masking, self.config.repetition_mask)
        if self._without is not None and step > self._without.after_step:
            leave_out(rows, [self._without.columns(row) for row in pieces])
        return rows

    def steps(self, first: int, last: int) -> Iterator[tuple[int, Rows]]:
        """(step, rows) of steps first..last. An error of the reading thread is raised here, at the step it belongs to."""
        ready: queue.Queue[tuple[int, Rows | Exception]] = queue.Queue(max(self.config.prefetch, 1))
        stop = threading.Event()

        def put(item: tuple[int, Rows | Exception]) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return True
                except queue.Full:
                    continue
            return False

        def read_ahead() -> None:
            for step in range(first, last + 1):
                try:
                    item: tuple[int, Rows | Exception] = (step, self.read(step))
                except Exception as error:  # handed over to the training thread
                    item = (step, error)
                if not put(item) or isinstance(item[1], Exception):
                    return

        thread = threading.Thread(target=read_ahead, name="loader", daemon=True)
        thread.start()
        try:
            for _ in range(first, last + 1):
                step, rows = ready.get()
                if isinstance(rows, Exception):
                    raise rows
                yield step, rows
        finally:
            stop.set()
            thread.join()


def read_rows(instances: list[tuple[Piece, ...]], seq_len: int, with_documents: bool, mask: RepetitionMaskConfig | None) -> Rows:
    """Read instances into arrays of width `seq_len`; a shorter instance is filled with id 0 and not predicted there."""
    ids = np.zeros((len(instances), seq_len), np.int64)
    documents = np.zeros((len(instances), seq_len), np.int32) if with_documents else None
    lengths = np.zeros(len(instances), np.int64)
    for b, pieces in enumerate(instances):
        for piece in pieces:
            columns = slice(piece.column, piece.column + piece.end - piece.start)
            ids[b, columns] = piece.file.read(piece.start, piece.end)
            lengths[b] = columns.stop
        if documents is not None:
            _number_documents(pieces, documents[b])
    labels = np.full_like(ids, IGNORE)
    labels[:, :-1] = ids[:, 1:]
    labels[np.arange(seq_len) >= lengths[:, None] - 1] = IGNORE
    masked = np.zeros(len(instances), bool)
    if mask is not None:
        masked = repeats(ids, mask.min_period, mask.max_period, mask.max_count)
        labels[masked] = IGNORE
    return Rows(ids, labels, documents, masked)


def leave_out(rows: Rows, columns: list[list[Columns]]) -> None:
    """Put end-of-text in some columns of each row, and let nothing predict what stood there; changes `rows`.

    A target is left out if and only if it is a token of a document that is left out, so every other one keeps its weight. The
    first token after such a document stays a target: it is not the document's, and end-of-text is what it followed anyway. The
    repetition mask was decided before, on what the row held, so the same rows are masked as in a run with the document.
    """
    rows.without = np.zeros((len(rows.ids), 2), np.int64)
    for b, spans in enumerate(columns):
        for start, end, eos_id in spans:
            rows.ids[b, start:end] = eos_id
            labels = rows.labels[b, max(start - 1, 0) : end - 1]
            rows.without[b] += end - start, (labels != IGNORE).sum()
            labels[:] = IGNORE


def _number_documents(pieces: tuple[Piece, ...], row: np.ndarray) -> None:
    """Number the documents of a row 0, 1, 2, ...; padding after the last piece gets a number of its own."""
    number = -1
    end = 0
    for piece in pieces:
        for ordinal in piece.file.index.documents_between(piece.start, piece.end):
            a, b = piece.file.index.span(ordinal)
            a, b = max(a, piece.start), min(b, piece.end)
            if a < b:
                number += 1
                row[piece.column + a - piece.start : piece.column + b - piece.start] = number
        end = piece.column + piece.end - piece.start
    row[end:] = number + 1


def document_offsets(documents_BT: np.ndarray) -> np.ndarray:
    """Where documents begin in the flattened B * T tokens, then B * T: int32 (n,). A row is a boundary too.

    The end is repeated up to a power of two, at least MIN_OFFSETS, so that all batches of a run share a few shapes. To a kernel
    these are documents without tokens; flash-attn-4 starts one thread block for each, so that more of them would cost time.
    """
    is_start = np.ones(documents_BT.shape, bool)
    is_start[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts = np.flatnonzero(is_start)
    offsets = np.full(max(MIN_OFFSETS, 1 << len(starts).bit_length()), documents_BT.size, np.int32)
    offsets[: len(starts)] = starts
    return offsets


def heldout_batches(
    stream: HeldoutStream, config: DataConfig, rank_and_count: tuple[int, int], limit: int
) -> Iterator[Rows | None]:
    """This rank's share of the first `limit` held-out instances; None where other ranks still have rows and this one has none,
    so that all ranks take part in the same number of forward passes."""
    rank, n_ranks = rank_and_count
    rows_per_batch = config.micro_batch_size // config.seq_len
    total = min(stream.n, limit)
    per_round = rows_per_batch * n_ranks
    for start in range(0, total, per_round):
        mine = range(start + rank * rows_per_batch, min(start + (rank + 1) * rows_per_batch, total))
        yield (read_rows([stream.pieces(n) for n in mine], stream.seq_len, config.document_masking, None) if len(mine) else None)
