"""Log-probability of spans given what stands before them, many in one forward pass, and the experts that read their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from checkpoints.inspect.observe import BATCH_TOKENS, RouterChoice, score_next, watch_routers
from data_tools.trace.answer import Place
from olmo_train.model.transformer import Transformer


@dataclass(frozen=True)
class SpanQuery:
    """A span and what the model sees before it."""

    ids: Sequence[int]
    context_ids: Sequence[int]
    """At least one id: the first token of a span is predicted too."""
    place: Place | None = None
    """Where it stands in indexed shards; None: in a text that was given."""
    context: str = "text"
    """Where the context is from (queries.py)."""


@dataclass(frozen=True)
class SpanScore:
    """What one model says of one span of T tokens."""

    log_probs_T: list[float]
    """Nats, each given the context and the span's tokens before it."""
    choices_LTK: np.ndarray
    """int64: the experts that read each token, the most probable first, by MoE layer; (0, T, 0) where they were not asked for."""


@dataclass(frozen=True)
class _Window:
    """Tokens [start, end) of context and span together, of which [scored, end) are scored."""

    query: int
    start: int
    scored: int
    end: int


def span_log_probs(model: Transformer, context_ids: Sequence[int], span_ids: Sequence[int], seq_len: int) -> list[float]:
    """Log-probability of each token of one span, nats: see `score_spans`."""
    return score_spans(model, [SpanQuery(span_ids, context_ids)], seq_len)[0].log_probs_T


@torch.no_grad()
def score_spans(
    model: Transformer, queries: Sequence[SpanQuery], seq_len: int, with_experts: Sequence[int] = ()
) -> list[SpanScore]:
    """Score spans together: windows of like length share a forward pass, padded at the end, where no token looks.

    The model sees at most `seq_len` tokens at a time, those that are scored included, as a row of training holds them. Where
    context and span are longer, the oldest context is left out as long as half a window of it remains; a longer span is read in
    windows that overlap by half.

    Args:
        with_experts: numbers of the queries whose experts are wanted too; nothing of a dense model.
    """
    assert seq_len >= 2, seq_len
    assert all(len(query.context_ids) and len(query.ids) for query in queries)
    layers = len(model.routers()) if with_experts else 0
    top_k = model.config.moe.top_k if layers and model.config.moe is not None else 0
    wanted = frozenset(with_experts) if layers else frozenset()
    log_probs = [np.zeros(len(query.ids)) for query in queries]
    choices = [
        np.zeros((layers, len(q.ids), top_k) if n in wanted else (0, len(q.ids), 0), np.int64) for n, q in enumerate(queries)
    ]
    for windows in _batches(queries, seq_len, model.embedding.weight.device.type):
        found, seen = _forward(model, queries, windows, any(window.query in wanted for window in windows))
        width = max(window.end - window.start for window in windows)
        for row, window in enumerate(windows):
            first = len(queries[window.query].context_ids)
            part = slice(window.scored - first, window.end - first)
            log_probs[window.query][part] = found[row]
            if window.query in wanted:
                tokens = slice(row * width + window.scored - window.start, row * width + window.end - window.start)
                for layer, choice in enumerate(seen):
                    choices[window.query][layer, part] = choice.expert_ids_NK[tokens].cpu().numpy()
    return [SpanScore(values.tolist(), chosen) for values, chosen in zip(log_probs, choices, strict=True)]


def _forward(
    model: Transformer, queries: Sequence[SpanQuery], windows: list[_Window], is_watched: bool
) -> tuple[list[list[float]], list[RouterChoice]]:
    """(log-probabilities of each window's scored tokens, what the routers did with all tokens if `is_watched`)."""
    device = model.embedding.weight.device
    ids_BT = np.zeros((len(windows), max(window.end - window.start for window in windows)), np.int64)
    for row, window in enumerate(windows):
        query = queries[window.query]
        ids_BT[row, : window.end - window.start] = [*query.context_ids, *query.ids][window.start : window.end]
    seen: list[RouterChoice] = []
    if is_watched:
        with watch_routers(model) as seen:
            x_BTD, _ = model.hidden(torch.from_numpy(ids_BT).to(device))
    else:
        x_BTD, _ = model.hidden(torch.from_numpy(ids_BT).to(device))
    places = [(row, column) for row, w in enumerate(windows) for column in range(w.scored - w.start, w.end - w.start)]
    rows, columns = np.array(places).T
    targets = torch.from_numpy(ids_BT[rows, columns]).to(device)
    log_probs_N = score_next(model, x_BTD[rows, columns - 1], targets).log_probs_N.double().cpu().numpy()
    ends = np.cumsum([window.end - window.scored for window in windows])
    return [part.tolist() for part in np.split(log_probs_N, ends[:-1])], seen


def _batches(queries: Sequence[SpanQuery], seq_len: int, device: str) -> list[list[_Window]]:
    """All windows, the longest first, in batches of about BATCH_TOKENS."""
    windows = [window for number, query in enumerate(queries) for window in _windows(number, query, seq_len)]
    windows.sort(key=lambda window: window.start - window.end)
    batches: list[list[_Window]] = []
    for window in windows:
        widest = batches[-1][0] if batches else None
        if widest is None or (len(batches[-1]) + 1) * (widest.end - widest.start) > BATCH_TOKENS[device]:
            batches.append([])
        batches[-1].append(window)
    return batches


def _windows(number: int, query: SpanQuery, seq_len: int) -> list[_Window]:
    first, total = len(query.context_ids), len(query.context_ids) + len(query.ids)
    half = max(1, seq_len // 2)
    start = max(0, total - seq_len)
    if start <= max(0, first - half):
        return [_Window(number, start, first, total)]
    windows, scored, start = [], first, max(0, first - half)
    while scored < total:
        end = min(start + seq_len, total)
        windows.append(_Window(number, start, scored, end))
        scored, start = end, end - half
    return windows
