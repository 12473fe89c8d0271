"""Examples whose gradients are compared: a span in its text, a document in the row that saw it, held-out text in its place."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from olmo_train.config.data import DataConfig
from olmo_train.data.loader import IGNORE, Rows, read_rows
from olmo_train.data.order import DataOrder, HeldoutStream
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """One row, of which tokens [start, end) are predicted (the first column of a row never is) and the others only read."""

    rows: Rows
    """B = 1, cut after the last predicted token: what stands behind it changes no prediction."""
    start: int
    end: int

    @property
    def n_targets(self) -> int:
        """Tokens predicted."""
        return self.rows.n_targets


def build_example(ids_T: np.ndarray, start: int, end: int, documents_T: np.ndarray | None = None) -> Example:
    """Of tokens that predict those of [start, end). `documents_T`: attention stays within equal numbers."""
    ids_T = np.asarray(ids_T[:end], np.int64)
    labels_T = np.full_like(ids_T, IGNORE)
    first = max(start, 1)
    labels_T[first - 1 : end - 1] = ids_T[first:end]
    documents = None if documents_T is None else np.ascontiguousarray(documents_T[None, :end])
    return Example(Rows(ids_T[None], labels_T[None], documents, np.zeros(1, bool)), start, end)


def span_example(query: SpanQuery, seq_len: int) -> Example:
    """A span given what stands before it; the oldest context is left out where a row would be too short.

    Raises:
        ConfigError: the span alone fills a row.
    """
    n = len(query.ids)
    if n >= seq_len:
        raise ConfigError(
            f"span of {n} tokens: the model reads rows of {seq_len}, and a span needs a token before it; choose a shorter span"
        )
    ids = np.array([*query.context_ids, *query.ids], np.int64)[-seq_len:]
    return build_example(ids, len(ids) - n, len(ids))


def row_example(order: DataOrder, data: DataConfig, step: int, row: int, column: int) -> Example:
    """The document at a column of a row, as training saw it: after what stands before it in the row, which is not predicted."""
    instance = order.batch(step, row, row + 1)[0]
    rows = read_rows([instance.pieces], data.seq_len, data.document_masking, None)
    document = next(d for d in order.documents(instance) if d.column_start <= column < d.column_end)
    documents_T = None if rows.documents is None else rows.documents[0]
    return build_example(rows.ids[0], document.column_start, document.column_end, documents_T)


def document_example(file: ShardFile, place: Place, n_tokens: int, seq_len: int) -> Example:
    """A document alone, up to `seq_len` tokens around the span at a place: what no row has is judged so."""
    first, last = file.index.span(file.index.documents_between(place.offset, place.offset + 1)[0])
    start = max(first, min(place.offset - max(seq_len - n_tokens, 0) // 2, last - seq_len))
    ids = np.asarray(file.read(start, min(last, start + seq_len)), np.int64)
    return build_example(ids, 0, len(ids))


# ---- the noise -----------------------------------------------------------------------------------------------------------


def heldout_examples(
    examples: Sequence[Example], files: list[ShardFile], avoid: Sequence[int], wish: tuple[int, int]
) -> list[Example]:
    """`wish` = (number, seed): the rows of `examples`, one after the other, each with held-out text in the place of its document.

    So they have the lengths of the documents and what stood before them. Text that holds the tokens `avoid` is not taken.

    Raises:
        ConfigError: too little is held out.
    """
    number, seed = wish
    rng = np.random.default_rng(seed)
    out = []
    for example in (examples[n % len(examples)] for n in range(number)):
        length = example.end - example.start
        stream = HeldoutStream(files, length)
        if stream.tokens < length:
            raise ConfigError(
                f"--null={number}: {stream.tokens} tokens are held out, a window like a document's takes {length}; give --null 0 "
                "or shards with a larger heldout_frac"
            )
        out.append(_replaced(example, _draw(stream, rng, avoid)))
    return out


def _draw(stream: HeldoutStream, rng: np.random.Generator, avoid: Sequence[int]) -> np.ndarray:
    """A whole window of the stream, without the tokens `avoid` if there is such a one."""
    ids = np.zeros(0, np.int64)
    for number in rng.permutation(stream.tokens // stream.seq_len).tolist():
        ids = np.concatenate([np.asarray(piece.file.read(piece.start, piece.end), np.int64) for piece in stream.pieces(number)])
        if not _holds(ids, avoid):
            break
    return ids


def _holds(ids: np.ndarray, part: Sequence[int]) -> bool:
    if len(part) > len(ids):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(part))
    return bool((windows == np.asarray(part)).all(1).any())


def _replaced(example: Example, ids: np.ndarray) -> Example:
    """The same row with other tokens in the place of the document."""
    whole = example.rows.ids[0].copy()
    whole[example.start : example.end] = ids
    documents = example.rows.documents
    return build_example(whole, example.start, example.end, None if documents is None else documents[0])
