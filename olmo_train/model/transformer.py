"""The transformer: embedding, blocks, output; one class that every supported architecture is a config of."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from olmo_train.config.model import ModelConfig, NormOrder
from olmo_train.kernels.attention import Documents, Mask, build_mask
from olmo_train.kernels.choose import Kernels
from olmo_train.kernels.cross_entropy import linear_cross_entropy
from olmo_train.model.attention import Attention
from olmo_train.model.feed_forward import FeedForward
from olmo_train.model.moe import MoE, Router, RouterStats
from olmo_train.model.norm import build_norm
from olmo_train.model.rope import Rotation, build_rotation
from olmo_train.model.shapes import moe_of_layer, vocab_rows, window_of_layer


class Losses(NamedTuple):
    """Sums over the predicted positions of a micro-batch, in nats (float32 scalars), and what the routers did."""

    loss: Tensor
    """Cross entropy plus z_loss_weight times z; the only one with a gradient."""
    cross_entropy: Tensor
    z: Tensor
    """logsumexp(logits)^2."""
    router: RouterStats | None
    """With a leading dim of MoE layers; None for a dense model."""


class Block(nn.Module):
    """One layer: attention and a feed-forward, each around a residual."""

    def __init__(self, model: ModelConfig, layer: int, kernels: Kernels) -> None:
        super().__init__()
        self.pre = model.norm_order == NormOrder.PRE
        self.attention_norm = build_norm(model, model.d_model)
        self.attention = Attention(model, kernels.attention)
        self.feed_forward_norm = build_norm(model, model.d_model)
        moe = moe_of_layer(model, layer)
        if moe is None:
            self.feed_forward = FeedForward(model.d_model, model.d_ff or 0)
        else:
            self.moe = MoE(model.d_model, moe, kernels.moe_mlp)

    def forward(self, x_BTD: Tensor, rotation: Rotation, mask: Mask) -> tuple[Tensor, RouterStats | None]:
        """(B, T, D) -> (B, T, D), and the router's sums if this layer has one."""
        if self.pre:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, mask)
            y_BTD, stats = self._feed_forward(self.feed_forward_norm(x_BTD))
            return x_BTD + y_BTD, stats
        x_BTD = x_BTD + self.attention_norm(self.attention(x_BTD, rotation, mask))
        y_BTD, stats = self._feed_forward(x_BTD)
        return x_BTD + self.feed_forward_norm(y_BTD), stats

    def _feed_forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterStats | None]:
        if hasattr(self, "moe"):
            return self.moe(x_BTD)
        return self.feed_forward(x_BTD), None


class Transformer(nn.Module):
    """A decoder-only language model. Parameters are uninitialised: fill them with `init.init_params` or load them."""

    def __init__(self, model: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config, self.kernels = model, kernels
        self.embedding = nn.Embedding(vocab_rows(model), model.d_model)
        self.blocks = nn.ModuleList(Block(model, layer, kernels) for layer in range(model.n_layers))
        self.norm = build_norm(model, model.d_model)
        if not model.tie_embeddings:
            self.lm_head = nn.Linear(model.d_model, vocab_rows(model), bias=False)

    def routers(self) -> list[Router]:
        """Of the MoE layers, in order."""
        return [module for module in self.modules() if isinstance(module, Router)]

    def fsdp_units(self) -> list[nn.Module]:
        """The modules to shard one by one; what is left belongs to the root."""
        return list(self.blocks)

    def forward(
        self,
        ids_BT: Tensor,
        labels_BT: Tensor | None = None,
        documents: Documents | None = None,
        router_only: bool = False,
    ) -> Tensor | Losses | RouterStats | None:
        """Logits (B, T, V) without labels; with labels the losses, and then no logits are ever held.

        Args:
            labels_BT: the id each position shall predict (already shifted); -100 leaves it out.
            documents: attention stays within them. None: it crosses them.
            router_only: return what the routers did, and compute no output.
        """
        x_BTD, stats = self.hidden(ids_BT, documents)
        if router_only:
            return stats
        weight_VD = self.embedding.weight if self.config.tie_embeddings else self.lm_head.weight
        if labels_BT is None:
            return nn.functional.linear(x_BTD, weight_VD)
        loss, ce, z = linear_cross_entropy(
            x_BTD.reshape(-1, x_BTD.shape[-1]),
            weight_VD,
            labels_BT.reshape(-1),
            self.config.z_loss_weight,
            self.kernels.cross_entropy,
        )
        return Losses(loss, ce, z, stats)

    def hidden(self, ids_BT: Tensor, documents: Documents | None = None) -> tuple[Tensor, RouterStats | None]:
        """The last hidden state (B, T, D), normed, and the routers' sums by MoE layer."""
        x_BTD = self.embedding(ids_BT)
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        kinds: dict[int | None, tuple[Rotation, Mask]] = {}
        per_layer = []
        for layer, block in enumerate(self.blocks):
            window = window_of_layer(self.config, layer)
            if window not in kinds:
                rotation = build_rotation(self.config, positions_T, is_windowed=window is not None)
                shape = (ids_BT.shape[0], ids_BT.shape[1])
                mask = build_mask(shape, window, documents, ids_BT.device, self.kernels.attention)
                kinds[window] = rotation, mask
            x_BTD, stats = block(x_BTD, *kinds[window])
            if stats is not None:
                per_layer.append(stats)
        stats = RouterStats(*(torch.stack(parts) for parts in zip(*per_layer, strict=True))) if per_layer else None
        return self.norm(x_BTD), stats
