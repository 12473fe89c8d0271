"""One forward pass over held-out tokens: which experts each token went to, and what the model predicted.

The model runs as it always does; hooks on its routers read what they return.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checkpoints.inspect.heldout import Heldout, SourceTokens
from olmo_train.config.model import Gate
from olmo_train.data.loader import IGNORE
from olmo_train.evaluate import to_device
from olmo_train.model.moe import Router
from olmo_train.model.transformer import Transformer

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""Of one forward pass; at least one row."""
LOGIT_ELEMENTS = {"cpu": 2**22, "cuda": 2**28}
"""Logits held at once: 16 MiB in float32 on a CPU."""


@dataclass(frozen=True)
class Observation:
    """Of N held-out tokens (padding left out), L MoE layers, K experts of each token. NumPy arrays."""

    sources: list[str]
    source_N: np.ndarray
    """int64: number of the source."""
    ids_N: np.ndarray
    """int64."""
    targets_N: np.ndarray
    """int64: the id that comes next; IGNORE (-100) at the end of a row."""
    predicted_N: np.ndarray
    """int64: the id the model holds most probable next."""
    log_probs_N: np.ndarray
    """float32, nats: of the target; 0 where there is none."""
    layers: list[int]
    """Blocks that are MoE layers."""
    n_experts: int
    choices_LNK: np.ndarray
    """uint8 or uint16: experts of each token, the most probable first; L = 0 for a dense model."""
    router_L3: np.ndarray
    """float64, means over tokens: entropy of the router's probabilities (nats), the largest, and those of the chosen together."""


@torch.no_grad()
def observe(model: Transformer, heldout: Heldout) -> Observation:
    """Run `model` over all tokens. Memory: one batch's activations, and N * (L * K + 12) bytes."""
    layers = [i for i, block in enumerate(model.blocks) if hasattr(block, "moe")]
    n_experts = model.config.moe.n_experts if model.config.moe is not None else 0
    small = np.uint8 if n_experts <= 256 else np.uint16
    parts: list[dict[str, np.ndarray]] = []
    chosen: list[np.ndarray] = []
    router_sums = torch.zeros(len(layers), 3, dtype=torch.float64)
    for number, source in enumerate(heldout.sources):
        for ids, targets, valid_N, documents in _batches(source, model):
            with watch_routers(model) as seen:
                x_BTD, _ = model.hidden(ids, documents)
            scores = score_next(model, x_BTD.flatten(0, 1)[valid_N], targets.flatten()[valid_N])
            part = {"source": np.full(int(valid_N.sum()), number), "ids": _numpy(ids.flatten()[valid_N])}
            part |= {"targets": _numpy(targets.flatten()[valid_N]), "predicted": _numpy(scores.predicted_N)}
            part["log_probs"] = _numpy(scores.log_probs_N)
            parts.append(part)
            if seen:
                chosen.append(np.stack([_numpy(choice.expert_ids_NK[valid_N]).astype(small) for choice in seen]))
            for layer, choice in enumerate(seen):
                router_sums[layer] += choice.router_N3[valid_N].double().sum(0).cpu()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    n = len(joined["ids"])
    choices = np.concatenate(chosen, 1) if chosen else np.zeros((0, n, 0), np.uint8)
    return Observation(
        [source.name for source in heldout.sources], joined["source"], joined["ids"], joined["targets"], joined["predicted"],
        joined["log_probs"], layers, n_experts, choices, (router_sums / n).numpy(),
    )  # fmt: skip


def _batches(source: SourceTokens, model: Transformer) -> Iterator[tuple[Tensor, Tensor, Tensor, Any]]:
    """(ids (B, T), targets (B, T), which of the B * T tokens are no padding, documents), on the model's device."""
    device = model.embedding.weight.device
    n_rows, seq_len = source.rows.ids.shape
    each = max(1, BATCH_TOKENS[device.type] // seq_len)
    for start in range(0, n_rows, each):
        stop = min(start + each, n_rows)
        ids, targets, documents = to_device(source.rows.slice(start, stop), device)
        valid = np.arange(seq_len) < source.lengths_R[start:stop, None]
        yield ids, targets, torch.from_numpy(valid.reshape(-1)).to(device), documents


# ---- routers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RouterChoice:
    """What one router did with N tokens."""

    expert_ids_NK: Tensor
    """int64, the most probable first (a selection bias orders otherwise)."""
    router_N3: Tensor
    """float32: entropy of the probabilities (nats), the largest, and those of the chosen together."""


@contextmanager
def watch_routers(model: Transformer) -> Iterator[list[RouterChoice]]:
    """Inside, every forward pass appends what each router did, in the order of the layers."""
    seen: list[RouterChoice] = []

    def look(router: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor, Any]) -> None:
        assert isinstance(router, Router)
        gates_NK, expert_ids_NK, _ = outputs
        order = gates_NK.argsort(dim=-1, descending=True, stable=True)
        ids_NK = expert_ids_NK.gather(-1, order)
        probs_NE = router_probs(router, inputs[0])
        mass_N = probs_NE.gather(-1, ids_NK).sum(-1)
        seen.append(RouterChoice(ids_NK, torch.stack([torch.special.entr(probs_NE).sum(-1), probs_NE.amax(-1), mass_N], -1)))

    hooks = [router.register_forward_hook(look) for router in model.routers()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def router_probs(router: Router, x_ND: Tensor) -> Tensor:
    """float32 (N, E): the router's probabilities, of which it returns only sums (model/moe.py has the formula)."""
    logits_NE = nn.functional.linear(x_ND, router.weight).float()
    if router.gate == Gate.SOFTMAX:
        return logits_NE.softmax(-1)
    scores_NE = logits_NE.sigmoid()
    return scores_NE / scores_NE.sum(-1, keepdim=True)


# ---- predictions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """Of N positions."""

    log_probs_N: Tensor
    """float32, nats: of the target; 0 where there is none."""
    ranks_N: Tensor
    """int64: ids more probable than the target, plus 1."""
    predicted_N: Tensor
    """int64: the most probable id."""


def score_next(model: Transformer, x_ND: Tensor, targets_N: Tensor) -> Scores:
    """What last hidden states (`Transformer.hidden`) say of the ids that come next; IGNORE where none does.

    The softmax is over all rows of the output, as in training; ranks and predictions are among the ids of the vocabulary. Holds
    LOGIT_ELEMENTS logits at a time.
    """
    weight_VD = model.embedding.weight if model.config.tie_embeddings else model.lm_head.weight
    each = max(1, LOGIT_ELEMENTS[x_ND.device.type] // weight_VD.shape[0])
    parts = []
    for x, targets in zip(x_ND.split(each), targets_N.split(each), strict=True):
        logits_NV = nn.functional.linear(x, weight_VD).float()
        of_target = logits_NV.gather(-1, targets.clamp_min(0)[:, None])
        log_probs = of_target[:, 0] - logits_NV.logsumexp(-1)
        in_vocabulary = logits_NV[:, : model.config.vocab_size]
        ranks = (in_vocabulary > of_target).sum(-1) + 1
        parts.append((log_probs.masked_fill(targets == IGNORE, 0.0), ranks, in_vocabulary.argmax(-1)))
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()
