"""Load-balancing and router z-loss, from the sums a router reports."""

import torch
from torch import Tensor

from olmo_train.config.model import MoEConfig


def load_balancing_loss(counts_LE: Tensor, probs_LE: Tensor, n_counted: Tensor | float, n_tokens: float, top_k: int) -> Tensor:
    """E * sum_e load_e * prob_e, meaned over layers; 1 where every expert gets the same.

    load_e = counts_e / (n_counted * top_k) is the share of assignments, prob_e = probs_e / n_tokens the mean probability. Counts
    may be taken over more tokens (n_counted) than the probabilities at hand (n_tokens): the gradient runs through the latter.

    Source: Switch Transformers, arXiv 2101.03961, equation 4, with OLMoE's division by top_k (megablocks' normalisation; the
    one in transformers lacks it); over the global batch: arXiv 2501.11873.
    """
    load_LE = counts_LE / (n_counted * top_k)
    return counts_LE.shape[1] * (load_LE * probs_LE / n_tokens).sum(-1).mean()


def router_z_loss(z_L: Tensor, n_tokens: float) -> Tensor:
    """logsumexp(router logits)^2, meaned over tokens and layers. Source: ST-MoE, arXiv 2202.08906, equation 5."""
    return z_L.mean() / n_tokens


@torch.no_grad()
def updated_bias(bias_E: Tensor, counts_E: Tensor, moe: MoEConfig) -> Tensor:
    """The selection bias after one optimizer step: up for underloaded experts, down for overloaded ones, centred.

    Source: arXiv 2408.15664, algorithm 1; counts over the whole global batch.
    """
    bias_E = bias_E + moe.bias_update_rate * torch.sign(counts_E.mean() - counts_E)
    return bias_E - bias_E.mean()
