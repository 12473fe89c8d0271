"""How far routing follows the words: the share of an id's occurrences that goes to its most frequent expert."""

from dataclasses import dataclass

import numpy as np

from checkpoints.inspect.measures import RoleVocabulary, TokenShare, Vocabulary
from checkpoints.inspect.observe import Observation
from olmo_train.data.loader import IGNORE


@dataclass(frozen=True)
class _Role:
    """The U distinct ids in one role."""

    at_M: np.ndarray
    """Tokens that have an id in this role."""
    ids_U: np.ndarray
    number_M: np.ndarray
    """Which of the U ids each token has."""
    counts_U: np.ndarray

    @classmethod
    def of(cls, ids_N: np.ndarray) -> "_Role":
        at = np.flatnonzero(ids_N != IGNORE)
        return cls(at, *np.unique(ids_N[at], return_inverse=True, return_counts=True))


@dataclass(frozen=True)
class ByRole:
    """The ids of the tokens in each role; made once for all layers."""

    input: _Role
    predicted: _Role
    target: _Role
    shuffled_N: np.ndarray
    """A fixed permutation of the tokens."""

    @classmethod
    def of(cls, seen: Observation) -> "ByRole":
        """Of an observation."""
        shuffled_N = np.random.default_rng(0).permutation(len(seen.ids_N))
        return cls(_Role.of(seen.ids_N), _Role.of(seen.predicted_N), _Role.of(seen.targets_N), shuffled_N)


def vocabulary(roles: ByRole, choices_Nk: np.ndarray, n_experts: int, min_count: int, n_tokens: int) -> Vocabulary:
    """Vocabulary specialisation of one layer for each role. Source: OLMoE, arXiv 2409.02060, equation 8 and figure 23.

    Per id: occurrences for which an expert is among the k, over all occurrences (as the paper's script divides for k > 1), for
    the expert with the most of them; of equals the first. Figure 23 means over all ids; here ids seen fewer than `min_count`
    times are left out, as in the paper's table of tokens: an id seen once has a share of 1 in any model.
    """
    dealt_Nk = choices_Nk[roles.shuffled_N]
    parts = []
    for role in (roles.input, roles.predicted, roles.target):
        best_U, share_U = _most_frequent(role, choices_Nk, n_experts)
        by_chance_U = _most_frequent(role, dealt_Nk, n_experts)[1]
        often = np.flatnonzero(role.counts_U >= min_count)
        parts.append(
            RoleVocabulary(
                _mean(share_U[often]), _mean(by_chance_U[often]), len(often),
                [_mean(share_U[often[best_U[often] == expert]]) for expert in range(n_experts)],
                [_tokens(role, share_U, often[best_U[often] == expert], n_tokens) for expert in range(n_experts)],
            )
        )  # fmt: skip
    return Vocabulary(choices_Nk.shape[1], min_count, *parts)


def _most_frequent(role: _Role, choices_Nk: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Per id: its most frequent expert, and the share of its occurrences that goes there."""
    slots = role.number_M[:, None] * n_experts + choices_Nk[role.at_M]
    counts_UE = np.bincount(slots.reshape(-1), minlength=len(role.ids_U) * n_experts).reshape(-1, n_experts)
    return counts_UE.argmax(1), counts_UE.max(1) / role.counts_U


def _tokens(role: _Role, share_U: np.ndarray, mine: np.ndarray, n_tokens: int) -> list[TokenShare]:
    order = np.lexsort((role.ids_U[mine], -role.counts_U[mine], -share_U[mine]))[:n_tokens]
    return [TokenShare(int(role.ids_U[u]), int(role.counts_U[u]), float(share_U[u])) for u in mine[order]]


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
