"""Mixture of experts: the router, its losses' ingredients, and the routed and shared experts."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from olmo_train.config.model import Gate, MoEConfig
from olmo_train.kernels.moe_mlp import moe_mlp
from olmo_train.kernels.top_k import top_k
from olmo_train.model.feed_forward import FeedForward


class RouterStats(NamedTuple):
    """What one layer's router did with N tokens: sums, so that micro-batches and ranks can be added up.

    Of a whole model each has a leading dim of MoE layers. `counts` and `confidence` carry no gradient.
    """

    counts: Tensor
    """float32 (E,): tokens sent to each expert."""
    probs: Tensor
    """float32 (E,): router probabilities summed over tokens."""
    z: Tensor
    """float32 (): logsumexp(logits)^2 summed over tokens."""
    confidence: Tensor
    """float32 (): largest router probability summed over tokens."""


class RouterSums(NamedTuple):
    """What a router itself knows of RouterStats; who got how many tokens, the experts' kernel counts."""

    probs: Tensor
    z: Tensor
    confidence: Tensor


class Router(nn.Module):
    """Chooses top_k experts for each token. Its product runs in the compute dtype (OLMoE's in bf16), what follows in float32."""

    def __init__(self, d_model: int, moe: MoEConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(moe.n_experts, d_model))
        self.top_k, self.gate, self.normalize, self.scale = moe.top_k, moe.gate, moe.normalize_top_k, moe.gate_scale
        self.balance_bias = moe.bias_update_rate > 0
        self.bias: Tensor
        if self.balance_bias:
            # Added to the scores for the choice only, never to the gates. Updated by the trainer, once per optimizer step.
            self.register_buffer("bias", torch.zeros(moe.n_experts, dtype=torch.float32))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, RouterSums]:
        """(gates (N, K) float32, expert ids (N, K) int64, sums over tokens).

        Sources: softmax gate, OLMoE arXiv 2409.02060 section 2; sigmoid gate, DeepSeek-V3 arXiv 2412.19437 equations 12 to 16;
        bias, arXiv 2408.15664. The bias is in units of logits for softmax gates (whose probabilities are around 1/E) and of
        scores for sigmoid gates.
        """
        logits_NE = nn.functional.linear(x_ND, self.weight).float()
        scores_NE = self.scores(logits_NE)
        gates_NK, expert_ids_NK = self.choose(logits_NE, scores_NE)
        probs_NE = scores_NE if self.gate == Gate.SOFTMAX else scores_NE / scores_NE.sum(-1, keepdim=True)
        sums = RouterSums(probs_NE.sum(0), logits_NE.logsumexp(-1).square().sum(), probs_NE.detach().amax(-1).sum())
        return gates_NK, expert_ids_NK, sums

    def scores(self, logits_NE: Tensor) -> Tensor:
        """What each expert's gate would be, in float32."""
        return logits_NE.softmax(-1) if self.gate == Gate.SOFTMAX else logits_NE.sigmoid()

    def choose(self, logits_NE: Tensor, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """(gates (N, K), expert ids (N, K))."""
        if self.balance_bias:
            choice_NE = (logits_NE if self.gate == Gate.SOFTMAX else scores_NE).detach() + self.bias
        else:
            choice_NE = scores_NE.detach()
        expert_ids_NK = top_k(choice_NE, self.top_k)
        gates_NK = scores_NE.gather(-1, expert_ids_NK)
        if self.normalize:
            gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
        return gates_NK * self.scale, expert_ids_NK


class MoE(nn.Module):
    """Routed experts, plus shared ones that every token passes through."""

    def __init__(self, d_model: int, moe: MoEConfig, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.router = Router(d_model, moe)
        self.w_in = nn.Parameter(torch.empty(moe.n_experts, 2 * moe.d_expert, d_model))
        self.w_out = nn.Parameter(torch.empty(moe.n_experts, d_model, moe.d_expert))
        # n shared experts of width d_expert, summed, are one of width n * d_expert.
        self.shared = FeedForward(d_model, moe.n_shared_experts * moe.d_expert) if moe.n_shared_experts else None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterStats]:
        """(B, T, D) -> (B, T, D), and what the router did."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        gates_NK, expert_ids_NK, sums = self.router(x_ND)
        # The gates stay float32: the kernels add up in float32 anyway.
        y_ND, counts_E = moe_mlp(x_ND, self.w_in, self.w_out, gates_NK, expert_ids_NK, self.backend)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view_as(x_BTD), RouterStats(counts_E.float(), *sums)
