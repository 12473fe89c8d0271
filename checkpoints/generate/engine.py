"""A batch of samples in the making: prompts in, one drawn token per row and step out."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import torch

from checkpoints.generate.sampling import Sampling, choose_token
from olmo_train.model.decode import Decoder
from olmo_train.model.transformer import Transformer
from olmo_train.rng import seed_of


class Finish(StrEnum):
    """Why a sample ends."""

    STOP = "stop"
    """The model ended the document."""
    LENGTH = "length"
    """So many tokens were asked for, or the context is full."""
    STOP_TEXT = "stop_text"
    """A text to stop at appeared."""
    INTERRUPTED = "interrupted"
    """By the user."""


@dataclass(frozen=True)
class Limits:
    """When a sample ends by itself."""

    max_tokens: int
    context: int
    """Tokens the model sees at most."""
    stop_id: int | None = None
    slide: bool = False
    """Go on when the context is full: every token then takes a whole forward pass over the last `context` tokens."""


@dataclass
class Sample:
    """One continuation of one prompt."""

    ids: list[int]
    """Of the prompt; at least one, at most the context."""
    prompt: int = 0
    """Place of the prompt among those given."""
    sample: int = 0
    """Number among the samples of this prompt."""
    tokens: list[int] = field(default_factory=list)
    """What was drawn; without the end of text."""
    logprob: float = 0.0
    """Of `tokens`, summed, by the model itself: before temperature, penalty and cuts."""
    finish: Finish | None = None

    def seed(self, seed: int) -> int:
        """Of its random numbers: its own, whatever else is in the batch."""
        return seed_of("generate", seed, self.prompt, self.sample)


class Drawn(NamedTuple):
    """What a step did to a sample."""

    sample: Sample
    token: int | None
    """None: the end of text, which is no part of the sample."""


class Batch:
    """Samples that are made together. Adjacent samples of one prompt share the work of reading it."""

    def __init__(self, decoder: Decoder, samples: list[Sample], limits: Limits, sampling: Sampling, seed: int) -> None:
        self._decoder, self._limits, self._sampling = decoder, limits, sampling
        self._rows = list(samples)
        """By row of the decoder; a finished one stays until rows are cleared."""
        self._generators = {id(sample): torch.Generator().manual_seed(sample.seed(seed)) for sample in samples}
        self._begun = False

    @property
    def live(self) -> list[Sample]:
        """Samples that are not finished."""
        return [sample for sample in self._rows if sample.finish is None]

    def step(self) -> list[Drawn]:
        """Draw a token for every live sample."""
        logits_BV = self._logits().float()
        if self._sampling.is_greedy:
            tokens = logits_BV.argmax(-1).tolist()
        else:
            on_host = logits_BV.cpu()
            tokens = [self._draw(sample, on_host[row]) for row, sample in enumerate(self._rows)]
        chosen = torch.tensor(tokens, device=logits_BV.device)[:, None]
        logprobs = (logits_BV.gather(1, chosen)[:, 0] - logits_BV.logsumexp(-1)).tolist()
        return [
            self._append(sample, token, logprob)
            for sample, token, logprob in zip(self._rows, tokens, logprobs, strict=True)
            if sample.finish is None
        ]

    def _logits(self) -> torch.Tensor:
        """After every row; a finished one repeats its last token, which nobody reads."""
        if self._begun:
            self._clear()
        limits = self._limits
        lengths = [len(sample.ids) + len(sample.tokens) for sample in self.live]
        if self._begun and max(lengths) <= limits.context:
            return self._decoder.step([(sample.tokens or sample.ids)[-1] for sample in self._rows])
        self._begun = True
        self._rows = self.live
        windows = [[*sample.ids, *sample.tokens][-limits.context :] for sample in self._rows]
        prompts, copies = _unique(windows)
        room = max(min(limits.max_tokens, limits.context - len(window)) for window in prompts)
        return self._decoder.prefill(prompts, room, copies)

    def _clear(self) -> None:
        """Drop finished rows once half are: each time copies what is left of the cache."""
        live = [row for row, sample in enumerate(self._rows) if sample.finish is None]
        if 2 * len(live) <= len(self._rows):
            self._decoder.keep(live)
            self._rows = [self._rows[row] for row in live]

    def _draw(self, sample: Sample, logits_V: torch.Tensor) -> int:
        if sample.finish is not None:
            return 0
        seen = [*sample.ids, *sample.tokens] if self._sampling.repetition_penalty != 1 else []
        return choose_token(logits_V, self._sampling, self._generators[id(sample)], seen)

    def _append(self, sample: Sample, token: int, logprob: float) -> Drawn:
        limits = self._limits
        if token == limits.stop_id:
            sample.finish = Finish.STOP
            return Drawn(sample, None)
        sample.tokens.append(token)
        sample.logprob += logprob
        is_full = len(sample.ids) + len(sample.tokens) > limits.context and not limits.slide
        if len(sample.tokens) == limits.max_tokens or is_full:
            sample.finish = Finish.LENGTH
        return Drawn(sample, token)


def _unique(windows: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Equal neighbours counted."""
    prompts: list[list[int]] = []
    copies: list[int] = []
    for window in windows:
        if prompts and window == prompts[-1]:
            copies[-1] += 1
        else:
            prompts.append(window)
            copies.append(1)
    return prompts, copies


def generate(
    model: Transformer, prompts: list[list[int]], limits: Limits, sampling: Sampling | None = None, seed: int = 0
) -> list[Sample]:
    """Continue every prompt (ids, at least one each) in one batch."""
    samples = [Sample(ids, prompt) for prompt, ids in enumerate(prompts)]
    batch = Batch(Decoder(model), samples, limits, sampling or Sampling(), seed)
    while batch.live:
        batch.step()
    return samples
