"""The order of training data: a pure, invertible function of (manifests, mixture, seed, step). No file of it can be lost.

    step, row  <->  position  <->  pool, draw  <->  pool, epoch, instance  <->  file, token offsets, documents

An *instance* is `seq_len` consecutive tokens of the train stream of one file (the file without its held-out documents; the tail
shorter than seq_len is dropped, as OLMo and OLMo-core do). A *pool* is a set of sources that are drawn from alike. Without
weights there is one pool, and every instance is seen once per epoch. With weights every source is a pool: of each BLOCK
consecutive positions a pool gets a fixed number, in proportion to its weight, at places chosen by a keyed permutation. The d-th
position that a pool of n instances gets is instance permutation(d mod n) of its epoch d div n; every epoch has a permutation of
its own.

The global batch of step s (steps count from 1) is positions (s-1) * G .. s * G - 1, G instances; how ranks and micro-batches
share it out changes nothing.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from olmo_train.data.permutation import Permutation
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ShardError

ALGORITHM = "olmo_train.order.1"
BLOCK = 2**14
"""Positions over which mixture weights hold exactly; a weight is rounded to a multiple of 1/BLOCK."""


@dataclass(frozen=True)
class Source:
    """Files drawn from alike. `fingerprint` is that of the manifest they come from."""

    name: str
    weight: float | None
    files: tuple[ShardFile, ...]
    fingerprint: str


@dataclass(frozen=True)
class Piece:
    """Tokens [start, end) of a file, standing at columns from `column` on in their instance."""

    file: ShardFile
    start: int
    end: int
    column: int


@dataclass(frozen=True)
class Instance:
    """One row of a batch: where it comes from."""

    step: int
    row: int
    source: str
    epoch: int
    """0 for the first pass over the pool."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class DocumentSpan:
    """The part of a document that stands in a row: columns of the row, and token offsets within the document."""

    row: int
    column_start: int
    column_end: int
    file: ShardFile
    ordinal: int
    offset_start: int
    offset_end: int


@dataclass(frozen=True)
class Sighting:
    """One time that training sees (part of) a document."""

    step: int
    row: int
    epoch: int
    column_start: int
    column_end: int
    offset_start: int
    offset_end: int


@dataclass(frozen=True)
class _Part:
    """The part of a span that lies in one instance: tokens [start, end) of the span, from `column` of the row on."""

    span: int
    instance: int
    column: int
    start: int
    end: int


@dataclass(frozen=True)
class _Block:
    """The mixture of BLOCK consecutive positions: the pool of each, how many of its pool stand before it in the block, and the
    positions sorted by pool. This and no more is held of the order in memory."""

    pools: np.ndarray
    ranks: np.ndarray
    places: np.ndarray


class _Pool:
    """Sources drawn from alike: numbers their instances 0 .. n-1, file after file."""

    def __init__(self, name: str, sources: list[Source], seq_len: int, seed: int) -> None:
        self.name, self.seed, self.seq_len = name, seed, seq_len
        self.files = [(file, source.name) for source in sources for file in source.files]
        counts = [(file.entry.tokens - file.entry.heldout_tokens) // seq_len for file, _ in self.files]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.n = int(self.first[-1])
        if self.n == 0:
            raise ShardError(
                f"source {name}: no file has seq_len={seq_len} training tokens; use a shorter data.seq_len or more text"
            )
        self.permutation = lru_cache(maxsize=64)(self._permutation)

    def _permutation(self, epoch: int) -> Permutation:
        return Permutation(self.n, [ALGORITHM, self.seed, "epoch", self.name, epoch])


class DataOrder:
    """Answers which tokens a step sees, and which steps see a document."""

    def __init__(self, sources: list[Source], seed: int, seq_len: int, global_batch_size: int) -> None:
        self.sources, self.seed, self.seq_len = sources, seed, seq_len
        self.rows = global_batch_size // seq_len
        weights = [source.weight for source in sources]
        if weights[0] is None:
            self._pools = [_Pool("+".join(s.name for s in sources), sources, seq_len, seed)]
            self._quotas = np.array([1], np.int64)
        else:
            self._pools = [_Pool(source.name, [source], seq_len, seed) for source in sources]
            self._quotas = _quotas([s.name for s in sources], [float(w or 0.0) for w in weights])
        self._first_slot = np.concatenate([[0], np.cumsum(self._quotas)])
        self._block = lru_cache(maxsize=64)(self._draw_block)

    @cached_property
    def key(self) -> dict[str, Any]:
        """Everything the order depends on, for the record; equal keys mean equal batches."""
        sources = [
            {
                "name": s.name,
                "weight": s.weight,
                "manifest": s.fingerprint,
                "tokens": sum(f.entry.tokens for f in s.files),
            }
            for s in self.sources
        ]
        values = {
            "algorithm": ALGORITHM,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "rows": self.rows,
            "sources": sources,
        }
        return {**values, "sha256": hashlib.sha256(json.dumps(values).encode()).hexdigest()}

    def instances_per_epoch(self) -> dict[str, int]:
        """Instances of each pool."""
        return {pool.name: pool.n for pool in self._pools}

    def drawn(self, step: int) -> dict[str, int]:
        """Instances that steps 1 .. `step` draw from each pool."""
        blocks, rest = divmod(step * self.rows, BLOCK)
        if len(self._pools) == 1:
            return {self._pools[0].name: step * self.rows}
        last = np.bincount(self._block(blocks).pools[:rest], minlength=len(self._pools))
        return {pool.name: blocks * int(self._quotas[p]) + int(last[p]) for p, pool in enumerate(self._pools)}

    # ---- step -> tokens -> documents -------------------------------------------------------------

    def batch(self, step: int, row_start: int = 0, row_end: int | None = None) -> list[Instance]:
        """Rows [row_start, row_end) of the global batch of `step` (the first step is 1)."""
        row_end = self.rows if row_end is None else row_end
        assert step >= 1, step
        assert 0 <= row_start <= row_end <= self.rows, (row_start, row_end)
        rows = np.arange(row_start, row_end, dtype=np.int64)
        pools, draws = self._draws((step - 1) * self.rows + rows)
        sizes = np.array([pool.n for pool in self._pools], np.int64)[pools]
        epochs, numbers = draws // sizes, draws % sizes
        for p, epoch in {*zip(pools.tolist(), epochs.tolist(), strict=True)}:
            same = (pools == p) & (epochs == epoch)
            numbers[same] = self._pools[p].permutation(epoch).forward(numbers[same])
        instances = []
        for row, p, epoch, number in zip(rows.tolist(), pools.tolist(), epochs.tolist(), numbers.tolist(), strict=True):
            pool = self._pools[p]
            at = int(np.searchsorted(pool.first, number, side="right")) - 1
            file, source = pool.files[at]
            start = (number - int(pool.first[at])) * self.seq_len
            instances.append(Instance(step, row, source, epoch, _train_pieces(file, start, start + self.seq_len)))
        return instances

    def documents(self, instance: Instance) -> list[DocumentSpan]:
        """The documents in one row, in order."""
        spans = []
        for piece in instance.pieces:
            for ordinal in piece.file.index.documents_between(piece.start, piece.end):
                first, last = piece.file.index.span(ordinal)
                a, b = max(first, piece.start), min(last, piece.end)
                if a < b:
                    column = piece.column + a - piece.start
                    spans.append(DocumentSpan(instance.row, column, column + b - a, piece.file, ordinal, a - first, b - first))
        return spans

    def _draws(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pool, draw) of each position."""
        if len(self._pools) == 1:
            return np.zeros_like(positions), positions
        pools, draws = np.empty_like(positions), np.empty_like(positions)
        blocks = positions // BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            drawn = self._block(int(block))
            pools[here] = drawn.pools[positions[here] % BLOCK]
            draws[here] = block * self._quotas[pools[here]] + drawn.ranks[positions[here] % BLOCK]
        return pools, draws

    def _draw_block(self, block: int) -> "_Block":
        """Which pool each of BLOCK positions draws from: the pools' quotas, dealt out by a permutation of the block's own."""
        slots = Permutation(BLOCK, [ALGORITHM, self.seed, "mixture", block]).forward(np.arange(BLOCK))
        pools = np.searchsorted(self._first_slot, slots, side="right") - 1
        places = np.argsort(pools, kind="stable")
        ranks = np.empty(BLOCK, np.int64)
        ranks[places] = np.arange(BLOCK) - self._first_slot[pools[places]]
        return _Block(pools, ranks, places)

    # ---- document -> steps -----------------------------------------------------------------------

    def sightings(self, file: ShardFile, start: int, end: int, last_step: int) -> list[Sighting]:
        """Every time that steps 1 .. last_step see a token of [start, end) of a file, which must lie in one document.

        Empty for held-out documents, and for the dropped tail of a file.
        """
        return self.sightings_of([(file, start, end)], last_step)[0]

    def sightings_of(self, spans: Sequence[tuple[ShardFile, int, int]], last_step: int) -> list[list[Sighting]]:
        """The same for many spans (file, start, end), in one evaluation of each permutation."""
        parts: list[list[_Part]] = [[] for _ in self._pools]
        for number, (file, start, end) in enumerate(spans):
            position = file.index.train_position(start) if end > start else None
            found = self._places.get(id(file))
            if position is None or found is None:
                continue
            p, at = found
            first_instance, n_instances = (
                int(self._pools[p].first[at]),
                int(self._pools[p].first[at + 1] - self._pools[p].first[at]),
            )
            shift = start - position
            last = min((position + end - start - 1) // self.seq_len, n_instances - 1)
            for local in range(position // self.seq_len, last + 1):
                begin = local * self.seq_len + shift
                a, b = max(start, begin), min(end, begin + self.seq_len)
                parts[p].append(_Part(number, first_instance + local, a - begin, a - start, b - start))
        sightings: list[list[Sighting]] = [[] for _ in spans]
        for p, mine in enumerate(parts):
            if mine:
                draws = self._positions(p, np.array([part.instance for part in mine], np.int64), last_step * self.rows)
                for which, epoch, place in draws:
                    part = mine[which]
                    step, row = divmod(place, self.rows)
                    columns = (part.column, part.column + part.end - part.start)
                    sightings[part.span].append(Sighting(step + 1, row, epoch, *columns, part.start, part.end))
        return [sorted(seen, key=lambda s: (s.step, s.row)) for seen in sightings]

    def _positions(self, p: int, numbers: np.ndarray, limit: int) -> Iterator[tuple[int, int, int]]:
        """(which of `numbers`, epoch, position) of every draw of these instances of pool `p` at a position below `limit`."""
        pool, quota = self._pools[p], int(self._quotas[p])
        most_draws = limit if len(self._pools) == 1 else (limit // BLOCK + 1) * quota
        for epoch in range(most_draws // pool.n + 1):
            draws = epoch * pool.n + pool.permutation(epoch).inverse(numbers)
            for which, draw in enumerate(draws.tolist()):
                position = draw
                if len(self._pools) > 1:
                    block, rank = divmod(draw, quota)
                    if block * BLOCK >= limit:
                        continue
                    position = block * BLOCK + int(self._block(block).places[self._first_slot[p] + rank])
                if position < limit:
                    yield which, epoch, position

    @cached_property
    def _places(self) -> dict[int, tuple[int, int]]:
        """By identity of a file: (pool, place in it)."""
        return {id(file): (p, at) for p, pool in enumerate(self._pools) for at, (file, _) in enumerate(pool.files)}


def _train_pieces(file: ShardFile, start: int, end: int) -> tuple[Piece, ...]:
    return _with_columns((file, a, b) for a, b in file.index.train_pieces(start, end))


def _with_columns(parts: Iterable[tuple[ShardFile, int, int]]) -> tuple[Piece, ...]:
    pieces, column = [], 0
    for file, a, b in parts:
        pieces.append(Piece(file, a, b, column))
        column += b - a
    return tuple(pieces)


def _quotas(names: list[str], weights: list[float]) -> np.ndarray:
    """Whole numbers in proportion to `weights` that sum to BLOCK (largest remainders)."""
    exact = np.array(weights) / sum(weights) * BLOCK
    quotas = np.floor(exact).astype(np.int64)
    for i in np.argsort(quotas - exact, kind="stable")[: BLOCK - int(quotas.sum())]:
        quotas[i] += 1
    for name, weight, quota in zip(names, weights, quotas, strict=True):
        if quota == 0:
            raise ShardError(
                f"data.sources.{name}.weight={weight} is less than 1/{BLOCK} of the sum of weights; drop the "
                "source or raise its weight"
            )
    return quotas


class HeldoutStream:
    """The held-out documents of some files, one after the other, cut into instances; the last one may be shorter."""

    def __init__(self, files: list[ShardFile], seq_len: int) -> None:
        self.files, self.seq_len = files, seq_len
        self._first = np.concatenate([[0], np.cumsum([f.entry.heldout_tokens for f in files], dtype=np.int64)])
        self.tokens = int(self._first[-1])
        self.n = -(-self.tokens // seq_len)

    def pieces(self, number: int) -> tuple[Piece, ...]:
        """Where instance `number` stands."""
        start, end = number * self.seq_len, min((number + 1) * self.seq_len, self.tokens)
        parts = []
        for at, file in enumerate(self.files):
            a, b = max(start - int(self._first[at]), 0), min(end, int(self._first[at + 1])) - int(self._first[at])
            if a < b:
                parts += [(file, x, y) for x, y in file.index.heldout_pieces(a, b)]
        return _with_columns(parts)
