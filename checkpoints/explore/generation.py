"""A prompt and a checkpoint in, pieces of text out as they are drawn: one generation at a time, others wait."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from checkpoints.explore.requests import GenerateRequest
from checkpoints.generate.engine import Batch, Limits, Sample
from checkpoints.generate.sampling import Sampling
from checkpoints.generate.streaming import TextStream
from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from olmo_train.model.decode import Decoder
from olmo_train.model.transformer import Transformer
from olmo_train.step_folder import step_name
from olmo_train.tokenizer import Tokenizer

WAIT_S = 0.25
"""Between two words to a client that waits: so long a turn goes unused when it has left."""


class Turns:
    """One at a time computes with models; who waits hears how many are before it."""

    def __init__(self) -> None:
        self._lock, self._count = Lock(), Lock()
        self._n = 0

    def wait(self) -> Iterator[dict[str, Any]]:
        """Yield while others compute; the turn is the caller's afterwards, who must `leave`. Left early, it is nobody's."""
        with self._count:
            self._n += 1
        is_mine = False
        try:
            while not (is_mine := self._lock.acquire(timeout=WAIT_S)):
                yield {"event": "waiting", "ahead": max(1, self._n - 1)}
        finally:
            if not is_mine:
                self._forget()

    def leave(self) -> None:
        """Let the next one compute."""
        self._lock.release()
        self._forget()

    def _forget(self) -> None:
        with self._count:
            self._n -= 1

    @contextmanager
    def taken(self) -> Iterator[None]:
        """For what does not stream."""
        for _ in self.wait():
            pass
        try:
            yield
        finally:
            self.leave()


class Models:
    """Models of the steps of a run, those used last kept in memory. Not for two threads at once: see Turns."""

    def __init__(self, steps_folder: Path, device: torch.device, limit: int) -> None:
        self._folder, self._device, self._limit = steps_folder, device, limit
        self._kept: OrderedDict[int, Transformer] = OrderedDict()

    def __contains__(self, step: int) -> bool:
        return step in self._kept

    def get(self, step: int) -> Transformer:
        """Raises:
        CheckpointError: the step is not whole.
        """
        if step not in self._kept:
            while len(self._kept) >= self._limit:  # before loading: two at once may be more than memory holds
                self._kept.popitem(last=False)
            self._kept[step] = load_model(open_step_folder(self._folder / step_name(step)), self._device)
        self._kept.move_to_end(step)
        return self._kept[step]


@dataclass(frozen=True)
class Continuation:
    """A prompt, read and found to fit."""

    ids: list[int]
    context: int
    request: GenerateRequest


def continue_text(wish: Continuation, models: Models, turns: Turns, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Events of one generation: waiting, loading, piece (text), done (finish, n_tokens, log_prob, text)."""
    yield from turns.wait()
    try:
        if wish.request.step not in models:
            yield {"event": "loading", "step": wish.request.step}
        yield from _draw(wish, models.get(wish.request.step), tokenizer)
    finally:
        turns.leave()


def _draw(wish: Continuation, model: Transformer, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    request, sample, stream = wish.request, Sample(wish.ids), TextStream(tokenizer)
    limits = Limits(request.max_tokens, wish.context, tokenizer.eos_id)
    batch = Batch(Decoder(model), [sample], limits, Sampling(temperature=request.temperature, top_p=request.top_p), request.seed)
    while batch.live:
        for _, token in batch.step():
            piece = stream.push(token) if token is not None else ""
            if piece:
                yield {"event": "piece", "text": piece}
    piece = stream.end()
    if piece:
        yield {"event": "piece", "text": piece}
    assert sample.finish is not None
    done = {"finish": sample.finish.value, "n_tokens": len(sample.tokens), "log_prob": sample.logprob, "text": stream.text}
    yield {"event": "done", **done}
