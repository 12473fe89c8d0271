"""What routers do with held-out tokens: balance, saturation, co-activation, and specialisation in sources and in words.

Definitions: OLMoE, arXiv 2409.02060, section 5, equations 5 to 8. Where the script of that paper (allenai/OLMoE,
scripts/run_moe_analysis.py) counts otherwise than its equations, the equations count here, and the docstring says so.
"""

import math
from dataclasses import dataclass

import numpy as np

from checkpoints.inspect.measures import Balance, CoActivation, Domain, LayerRouting, Pair, Routing, Saturation, Vocabulary
from checkpoints.inspect.observe import Observation
from checkpoints.inspect.vocabulary import ByRole, vocabulary
from olmo_train.errors import ConfigError

CHUNK_TOKENS = 2**16
"""Counted at once; counts of so many tokens are exact in float32."""


@dataclass(frozen=True)
class RoutingOptions:
    """What is counted and shown."""

    min_count: int = 10
    """Occurrences from which an id counts for vocabulary specialisation."""
    n_tokens: int = 10
    """Ids shown of each expert."""
    n_pairs: int = 10
    """Pairs of experts shown and averaged of each layer."""
    with_matrix: bool = True
    """Keep the whole matrix of co-activation."""


def layer_routing(seen: Observation, final: Observation | None = None, options: RoutingOptions | None = None) -> Routing:
    """All measures of each MoE layer; `final`: the checkpoint that saturation compares with, over the same tokens.

    Raises:
        ConfigError: the two are not routed alike (layers, experts, top_k), or there are no routers.
    """
    options = options or RoutingOptions()
    if not seen.layers:
        raise ConfigError("routing can be measured of a mixture of experts only; this model is dense")
    if final is not None and (final.layers, final.n_experts, final.choices_LNK.shape) != (
        seen.layers, seen.n_experts, seen.choices_LNK.shape,
    ):  # fmt: skip
        raise ConfigError("saturation compares checkpoints of one architecture over the same tokens; these two differ")
    roles = ByRole.of(seen)
    layers = []
    for at, layer in enumerate(seen.layers):
        choices_NK = seen.choices_LNK[at].astype(np.int64)
        layers.append(
            LayerRouting(
                layer,
                balance(choices_NK, seen.n_experts, seen.router_L3[at]),
                None if final is None else saturation(choices_NK, final.choices_LNK[at].astype(np.int64)),
                co_activation(choices_NK, seen.n_experts, options.n_pairs, options.with_matrix),
                domains(choices_NK, seen.n_experts, seen.source_N, seen.sources),
                _vocabulary(roles, choices_NK[:, :1], seen.n_experts, options),
                _vocabulary(roles, choices_NK, seen.n_experts, options),
            )
        )
    return Routing(seen.n_experts, seen.choices_LNK.shape[-1], len(seen.ids_N), layers)


def _vocabulary(roles: ByRole, choices_Nk: np.ndarray, n_experts: int, options: RoutingOptions) -> Vocabulary:
    return vocabulary(roles, choices_Nk, n_experts, options.min_count, options.n_tokens)


def balance(choices_NK: np.ndarray, n_experts: int, router_3: np.ndarray) -> Balance:
    """How evenly tokens are spread. `router_3`: means of entropy, confidence and mass, as in Observation."""
    load_E = np.bincount(choices_NK.reshape(-1), minlength=n_experts) / choices_NK.size
    used = load_E[load_E > 0]
    entropy = float(-(used * np.log(used)).sum())
    return Balance(
        load_E.tolist(), float(load_E.max() * n_experts), float(load_E.min() * n_experts), int((load_E == 0).sum()),
        entropy / math.log(n_experts) if n_experts > 1 else 1.0, *(float(value) for value in router_3),
    )  # fmt: skip


def saturation(choices_NK: np.ndarray, final_NK: np.ndarray) -> Saturation:
    """Mean over tokens of |chosen now and at last| / k, for k = K and k = 1. Source: OLMoE, equation 5."""
    matches = 0
    for start in range(0, len(choices_NK), CHUNK_TOKENS):
        now, last = choices_NK[start : start + CHUNK_TOKENS], final_NK[start : start + CHUNK_TOKENS]
        matches += int((now[:, :, None] == last[:, None, :]).sum())
    return Saturation(matches / choices_NK.size, float((choices_NK[:, 0] == final_NK[:, 0]).mean()))


def co_activation(choices_NK: np.ndarray, n_experts: int, n_pairs: int, with_matrix: bool = True) -> CoActivation:
    """Share of the tokens of expert i that also go to expert j. Source: OLMoE, equation 6.

    All pairs of a token's K experts count. The paper's script counts only experts next to each other by probability
    (`pairwise` of the sorted list), and so gets less.
    """
    together_EE = np.zeros((n_experts, n_experts))
    for start in range(0, len(choices_NK), CHUNK_TOKENS):
        part = choices_NK[start : start + CHUNK_TOKENS]
        active_NE = np.zeros((len(part), n_experts), np.float32)
        np.put_along_axis(active_NE, part, 1.0, 1)
        together_EE += active_NE.T @ active_NE
    n_E = together_EE.diagonal().copy()
    share_EE = together_EE / np.maximum(n_E, 1)[:, None]
    np.fill_diagonal(share_EE, 0.0)
    used = np.flatnonzero(n_E)
    order = np.argsort(-share_EE, axis=None, kind="stable")
    order = order[order // n_experts != order % n_experts][:n_pairs]
    strongest = [Pair(int(i // n_experts), int(i % n_experts), float(share_EE.flat[i])) for i in order]
    n_used_pairs = len(used) * (len(used) - 1)
    return CoActivation(
        strongest, sum(pair.share for pair in strongest) / max(1, len(strongest)),
        float(share_EE[np.ix_(used, used)].sum() / max(1, n_used_pairs)), share_EE.tolist() if with_matrix else None,
    )  # fmt: skip


def domains(choices_NK: np.ndarray, n_experts: int, source_N: np.ndarray, sources: list[str]) -> dict[str, Domain]:
    """Share of each source's tokens for which an expert is among the K, and the first. Source: OLMoE, equation 7."""
    dealt_N = np.random.default_rng(0).permutation(source_N)
    top_k, uniform = choices_NK.shape[1], choices_NK.shape[1] / n_experts
    found = {}
    for number, name in enumerate(sources):
        mine_NK = choices_NK[source_N == number]
        share_E = _shares(mine_NK, n_experts)
        shuffled_E = _shares(choices_NK[dealt_N == number], n_experts)
        found[name] = Domain(
            share_E.tolist(), _shares(mine_NK[:, :1], n_experts).tolist(), float(np.abs(share_E - uniform).mean() / uniform),
            float(np.abs(shuffled_E - uniform).mean() / uniform),
        )  # fmt: skip
        assert abs(share_E.sum() - top_k) < 1e-6
    return found


def _shares(choices_NK: np.ndarray, n_experts: int) -> np.ndarray:
    """(E,): of the tokens, those that have the expert."""
    return np.bincount(choices_NK.reshape(-1), minlength=n_experts) / len(choices_NK)
