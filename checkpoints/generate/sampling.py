"""How the next token is drawn from the model's logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-30
"""Of temperatures besides 0: logits over a smaller one are beyond float32. The most probable token has it all long before."""
LIKELY = 256
"""A nucleus is first looked for among so many tokens: sorting a whole vocabulary costs more than a step of a small model."""


@dataclass(frozen=True)
class Sampling:
    """Applied in the order of the fields, as transformers does."""

    repetition_penalty: float = 1.0
    """Logits of tokens that are already there are divided by this if positive, multiplied if negative."""
    temperature: float = 0.8
    """0: always the most probable."""
    top_k: int = 0
    """Among so many of the most probable tokens; 0: all."""
    top_p: float = 0.95
    """Among the fewest most probable tokens that together have this probability."""
    min_p: float = 0.0
    """Among the tokens with at least this fraction of the largest probability."""

    @property
    def is_greedy(self) -> bool:
        """Whether the logits' own argmax is the choice."""
        return self.temperature == 0 and self.repetition_penalty == 1


def choose_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator, seen: Sequence[int] = ()) -> int:
    """Draw one token; `logits_V`: float32 on the CPU. `seen`: the tokens before it, for the repetition penalty.

    One number is drawn from `generator`, and tokens share out the interval [0, 1) in the order of their ids: if logits change in
    their last bits, as in another batch, the choice changes only for a number within such a bit of a border.
    """
    logits_V = _penalise(logits_V, sampling.repetition_penalty, seen)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    ids, probs = candidates(logits_V, sampling)
    bounds = probs.double().cumsum(0)
    drawn = torch.rand(1, generator=generator, dtype=torch.float64) * bounds[-1]
    place = min(int(torch.searchsorted(bounds, drawn, right=True)), len(ids) - 1)
    return int(ids[place])


def candidates(logits_V: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Ids that may be drawn, ascending, and their probabilities, not divided by their sum.

    Sources: nucleus, Holtzman et al., arXiv 1904.09751; min-p, Nguyen et al., arXiv 2407.01082.
    """
    probs_V = (logits_V / max(sampling.temperature, COLDEST)).softmax(-1)
    limit = min(sampling.top_k or len(probs_V), len(probs_V))
    if limit == len(probs_V) and sampling.top_p == 1:
        kept = (probs_V >= sampling.min_p * probs_V.max()).nonzero()[:, 0]
        return kept, probs_V[kept]
    probs, ids = _most_probable(probs_V, limit, sampling.top_p)
    keep = probs >= sampling.min_p * probs[0]
    if sampling.top_p < 1:
        before = probs.double().cumsum(0) - probs
        share = sampling.top_p * (1.0 if limit == len(probs_V) else float(probs.sum()))  # of what top_k leaves
        keep &= before < share  # the first one always stays
    ids, order = ids[keep].sort()
    return ids, probs[keep][order]


def _most_probable(probs_V: Tensor, limit: int, top_p: float) -> tuple[Tensor, Tensor]:
    """(probabilities, ids), descending, with `limit` of them or enough for the nucleus."""
    if limit == len(probs_V) > LIKELY:
        probs, ids = probs_V.topk(LIKELY)
        if float(probs.sum(dtype=torch.float64)) >= top_p:
            return probs, ids
    probs, ids = probs_V.topk(limit)
    return probs, ids


def _penalise(logits_V: Tensor, penalty: float, seen: Sequence[int]) -> Tensor:
    """Source: Keskar et al., arXiv 1909.05858, section 4.1; multiplied where negative, as everybody does since."""
    if penalty == 1 or not seen:
        return logits_V
    ids = torch.tensor(sorted(set(seen)))
    old = logits_V[ids]
    return logits_V.index_copy(0, ids, torch.where(old > 0, old / penalty, old * penalty))
