"""A transformer that reads a batch of prompts once and then continues each of them by one token at a time.

The architecture is the Transformer's own: its blocks run here too, with three parts exchanged for ones without a backward pass
(attention over a cache, experts without statistics, products of few rows). Weights are shared, not copied.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from olmo_train.config.model import MoEConfig
from olmo_train.kernels import few_rows
from olmo_train.model.attention import Attention
from olmo_train.model.cache import LayerCache, Prompt, Slots
from olmo_train.model.moe import MoE, RouterStats
from olmo_train.model.norm import RMSNorm
from olmo_train.model.rope import WideRotation, build_rotation, rotate_wide, widen
from olmo_train.model.shapes import d_head, moe_of_layer, n_kv_heads, window_of_layer
from olmo_train.model.transformer import Transformer

PREFILL_TOKENS = 4096
"""Prompts are read in groups of at most this many tokens (or one prompt), which bounds the activations held."""


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return few_rows.linear(x, self.weight)


class _RMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return few_rows.rms_norm(x, self.weight, self.eps)


class _Attention(Attention):
    def forward(self, x_BTD: Tensor, rotation: WideRotation, attend: Callable[..., Tensor]) -> Tensor:  # type: ignore[override]
        """`attend`: over the keys and values of the cache, too."""
        q_BTHC, k_BTGC, v_BTGC = self.project(x_BTD)
        out_BTHC = attend(rotate_wide(q_BTHC, rotation), rotate_wide(k_BTGC, rotation), v_BTGC)
        return self.w_out(out_BTHC.flatten(-2))


class _MoE(MoE):
    def forward(self, x_BTD: Tensor) -> tuple[Tensor, RouterStats | None]:  # type: ignore[override]
        """Without the router's sums, which only training wants."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NE = few_rows.linear(x_ND, self.router.weight).float()
        gates_NK, expert_ids_NK = self.router.choose(logits_NE, self.router.scores(logits_NE))
        y_ND = few_rows.experts(x_ND, self.w_in, self.w_out, gates_NK, expert_ids_NK, self.backend)
        if self.shared is not None:
            y_ND = y_ND + self.shared(x_ND)
        return y_ND.view_as(x_BTD), None


@dataclass
class _Held:
    """What a batch has; by window of a layer where layers with the same window share it."""

    positions_B: Tensor
    """Of the next token of each row."""
    slots: dict[int | None, Slots]
    tables: dict[int | None, WideRotation]
    caches: list[LayerCache]
    """By layer."""

    def rotations(self, positions: Tensor) -> dict[int | None, WideRotation]:
        """At some positions."""
        return {window: WideRotation(table.cos[positions], table.sin[positions]) for window, table in self.tables.items()}


class Decoder:
    """Rows of tokens that grow by one per step; every row's logits are those of its tokens alone."""

    def __init__(self, model: Transformer) -> None:
        """`model` stays as it is; its weights must not change while this is in use."""
        self.config, self.backend = model.config, model.kernels.attention
        self._model = _exchange(model)
        head = self._model.embedding if model.config.tie_embeddings else self._model.lm_head
        self._w_head_VD = head.weight[: model.config.vocab_size]  # rows of padding are no tokens
        self._windows = [window_of_layer(model.config, layer) for layer in range(model.config.n_layers)]
        self._active = sum(_active(name, param, model.config.moe) for name, param in model.named_parameters())
        self._held = self._allocate([0], 0)

    @torch.inference_mode()
    def prefill(self, prompts: list[list[int]], n_new: int, copies: int | list[int] = 1) -> Tensor:
        """Begin a batch: `copies` rows per prompt, in order, with room for `n_new` more tokens. What was held before is dropped.

        Returns:
            Logits of the token after each row: (B, vocab_size).
        """
        each = [copies] * len(prompts) if isinstance(copies, int) else copies
        lengths = [len(prompt) for prompt, n in zip(prompts, each, strict=True) for _ in range(n)]
        self._held = self._allocate(lengths, n_new)
        logits, row = [], 0
        for group, rows in _groups(prompts, each):
            logits.append(self._read(group, rows, row))
            row += sum(rows)
        return torch.cat(logits)

    @torch.inference_mode()
    def step(self, ids: list[int]) -> Tensor:
        """Append one token to each row; return the logits of the next: (B, vocab_size)."""
        with few_rows.threads_for(len(ids) * self._active, self._held.positions_B.device):
            return self._step(ids)

    def _step(self, ids: list[int]) -> Tensor:
        held = self._held
        for slots in held.slots.values():
            slots.advance()
        x_B1D = self._model.embedding(torch.tensor(ids, device=held.positions_B.device))[:, None]
        attends = [cache.add_token for cache in held.caches]
        x_B1D = self._through_blocks(x_B1D, held.rotations(held.positions_B[:, None]), attends)
        held.positions_B = held.positions_B + 1
        return few_rows.linear(self._model.norm(x_B1D)[:, 0], self._w_head_VD)

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch only, in this order."""
        held = self._held
        index = torch.tensor(rows, device=held.positions_B.device)
        held.positions_B = held.positions_B[index]
        for slots in held.slots.values():
            slots.keep(index)
        for cache in held.caches:
            cache.keep(index)

    def _allocate(self, lengths: list[int], n_new: int) -> _Held:
        weight, n_columns = self._model.embedding.weight, max(lengths) + n_new
        positions = torch.arange(n_columns, device=weight.device)
        slots = {window: Slots(lengths, n_columns, window, weight) for window in set(self._windows)}
        tables = {w: widen(build_rotation(self.config, positions, is_windowed=w is not None)) for w in slots}
        shape = (len(lengths), n_kv_heads(self.config), d_head(self.config))
        caches = [LayerCache(slots[window], shape, weight) for window in self._windows]
        return _Held(torch.tensor(lengths, device=weight.device), slots, tables, caches)

    def _read(self, prompts: list[list[int]], copies: list[int], row: int) -> Tensor:
        """Pack prompts into one sequence, so that nothing is padded; rows of the batch begin at `row`."""
        packed, token = [], 0
        for prompt, n in zip(prompts, copies, strict=True):
            packed.append(Prompt(slice(token, token + len(prompt)), slice(row, row + n)))
            token, row = token + len(prompt), row + n
        device = self._held.positions_B.device
        positions_T = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
        ids_1T = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        attends = [partial(cache.add_prompts, prompts=packed, backend=self.backend) for cache in self._held.caches]
        x_1TD = self._through_blocks(self._model.embedding(ids_1T), self._held.rotations(positions_T), attends)
        ends = torch.tensor([prompt.tokens.stop - 1 for prompt in packed], device=device)
        logits = few_rows.linear(self._model.norm(x_1TD[0, ends]), self._w_head_VD)
        return logits.repeat_interleave(torch.tensor(copies, device=device), 0)

    def _through_blocks(
        self, x_BTD: Tensor, rotations: dict[int | None, WideRotation], attends: Sequence[Callable[..., Tensor]]
    ) -> Tensor:
        for block, window, attend in zip(self._model.blocks, self._windows, attends, strict=True):
            x_BTD, _ = block(x_BTD, rotations[window], attend)
        return x_BTD


def _exchange(model: Transformer) -> Transformer:
    """The same model on the same weights, with the parts of this module."""
    with torch.device("meta"):
        twin = Transformer(model.config, model.kernels)
        for layer, block in enumerate(twin.blocks):
            block.attention = _Attention(model.config, model.kernels.attention)
            moe = moe_of_layer(model.config, layer)
            if moe is not None:
                block.moe = _MoE(model.config.d_model, moe, model.kernels.moe_mlp)
        for module in list(twin.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Linear:
                    setattr(module, name, _Linear(child.in_features, child.out_features, bias=False))
                if type(child) is RMSNorm:
                    setattr(module, name, _RMSNorm(child.weight.shape[0], child.eps))
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def _groups(prompts: list[list[int]], copies: list[int]) -> Iterator[tuple[list[list[int]], list[int]]]:
    first, tokens = 0, 0
    for i, prompt in enumerate(prompts):
        if i > first and tokens + len(prompt) > PREFILL_TOKENS:
            yield prompts[first:i], copies[first:i]
            first, tokens = i, 0
        tokens += len(prompt)
    yield prompts[first:], copies[first:]


def _active(name: str, param: Tensor, moe: MoEConfig | None) -> int:
    """Elements of a parameter that a token is multiplied with, roughly."""
    if moe is not None and name.endswith((".moe.w_in", ".moe.w_out")):
        return param.numel() * moe.top_k // moe.n_experts
    return param.numel()
