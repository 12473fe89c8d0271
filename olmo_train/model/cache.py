"""Keys and values of the tokens so far: allocated once, a slot written per step, a ring of slots where a layer has a window.

Rows of different lengths *end* at the same column, so that a step writes one slot for all of them; the columns left of a row's
first token are hidden from it. Keys are stored turned by their own row's positions, so where they lie does not matter.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from olmo_train.kernels.attention import attention, build_mask
from olmo_train.kernels.decode_attention import decode_attention


class Prompt(NamedTuple):
    """One prompt of several packed into one sequence, and the rows of the batch that begin with it."""

    tokens: slice
    rows: slice


class Slots:
    """Which column lies in which slot, for all layers with the same window."""

    def __init__(self, lengths: list[int], n_columns: int, window: int | None, like: Tensor) -> None:
        """`lengths`: tokens of each row's prompt. `n_columns`: the longest of them and all new ones. `like`: device and dtype."""
        self.window, self.n_columns = window, n_columns
        self.size = n_columns if window is None else min(window, n_columns)
        self.column = max(lengths)
        """Columns filled so far; the next step writes this one."""
        self.slot, self.held = -1, min(self.column, self.size)
        """Slot that this step writes; slots with a key in them, that one included."""
        self.first_clear = self.column - min(lengths)
        """From this column on nothing is hidden."""
        self.bias_B11S: Tensor | None = None
        if self.first_clear > max(0, self.column - self.size):
            self.bias_B11S = torch.zeros(len(lengths), 1, 1, self.size, device=like.device, dtype=like.dtype)
            for row, length in enumerate(lengths):
                self.bias_B11S[row, 0, 0, self.slots_of(0, self.column - length, like.device)] = float("-inf")

    def slots_of(self, first: int, end: int, device: torch.device) -> Tensor:
        """Slots of those columns from `first` to before `end` that are still held when the prompts are in."""
        oldest = self.column - self.size
        return torch.arange(max(first, min(oldest, end)), end, device=device) % self.size

    def advance(self) -> None:
        """Make room for the next column."""
        self.slot = self.column % self.size
        if self.bias_B11S is not None and self.column >= self.size:
            self.bias_B11S[..., self.slot] = 0
            if self.column - self.size + 1 >= self.first_clear:
                self.bias_B11S = None
        self.column += 1
        self.held = min(self.column, self.size)

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        if self.bias_B11S is not None:
            self.bias_B11S = self.bias_B11S[rows]


class LayerCache:
    """Keys and values of one layer: (B, G, slots, C)."""

    def __init__(self, slots: Slots, shape: tuple[int, int, int], like: Tensor) -> None:
        """`shape`: rows, kv heads, width of a head. `like`: device and dtype."""
        self.slots = slots
        rows, heads, width = shape
        # Zeros, not garbage: a hidden key still takes part in the products, where NaN would survive.
        self.k_BGSC = like.new_zeros(rows, heads, slots.size, width)
        self.v_BGSC = like.new_zeros(rows, heads, slots.size, width)

    def add_prompts(self, q_BTHC: Tensor, k_BTGC: Tensor, v_BTGC: Tensor, prompts: list[Prompt], backend: str) -> Tensor:
        """Attend within each of the prompts packed into one sequence (B = 1), and remember them. Returns (1, T, H, C)."""
        out = []
        for prompt in prompts:
            q, k, v = (x[:, prompt.tokens] for x in (q_BTHC, k_BTGC, v_BTGC))
            self._remember(prompt.rows, k, v)
            mask = build_mask((1, k.shape[1]), self.slots.window, None, k.device, backend)
            out.append(attention(q, k, v, mask, backend))
        return torch.cat(out, 1)

    def _remember(self, rows: slice, k_1TGC: Tensor, v_1TGC: Tensor) -> None:
        end = self.slots.column
        where = self.slots.slots_of(end - k_1TGC.shape[1], end, k_1TGC.device)
        for cache_BGSC, new in ((self.k_BGSC, k_1TGC), (self.v_BGSC, v_1TGC)):
            part = cache_BGSC[rows]
            part.index_copy_(2, where, new[:, -len(where) :].transpose(1, 2).expand(part.shape[0], -1, -1, -1))

    def add_token(self, q_B1HC: Tensor, k_B1GC: Tensor, v_B1GC: Tensor) -> Tensor:
        """Remember one token per row and attend to all that are held. Returns (B, 1, H, C)."""
        slots = self.slots
        self.k_BGSC[:, :, slots.slot] = k_B1GC[:, 0]
        self.v_BGSC[:, :, slots.slot] = v_B1GC[:, 0]
        bias = None if slots.bias_B11S is None else slots.bias_B11S[..., : slots.held]
        k, v = self.k_BGSC[:, :, : slots.held], self.v_BGSC[:, :, : slots.held]
        return decode_attention(q_B1HC[:, 0], k, v, bias)[:, None]

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch."""
        self.k_BGSC, self.v_BGSC = self.k_BGSC[rows], self.v_BGSC[rows]
